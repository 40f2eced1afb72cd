"""The shared types: what a family, a model, a task, a method, a strategy and a source of data are.

Each is a NamedTuple of values and pure functions. Legend of axes, used everywhere: B batch, H W C image, T tokens,
D width, N heads, K head size, F hidden, Y classes, R rank, E domains.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.weights import Row, Table

Tree = Mapping[str, Any]
Inputs = Mapping[str, Any]
Outputs = Mapping[str, Any]


class HeadFormat(NamedTuple):
    """How one head of a family is written in its reference library.

    Attributes:
      architecture: the reference's class name ("BertForSequenceClassification").
      head: (config of the family, config.json as a dict) → our head module, for a checkpoint that carries it.
      matches: our head module → whether this class computes the same function.
      rows: config of the family → the weight rows of the head; our paths start with `head/`.
      prefix: what the class puts before the backbone's names ("bert.").
      describe: our head module, class names or None → entries to set in config.json (`num_labels`, `id2label`).
      lacks: regular expressions of tensors of the backbone, under their full names, that this class does not have (a
        pooler that it does not run); an export with this head leaves them out.
      spelling: the naming of the weights that the class belongs to, a key of the family's `spellings`; "" for `table`.
    """

    architecture: str
    head: Callable[[Any, Mapping[str, Any]], Any]
    matches: Callable[[Any], bool]
    rows: Callable[[Any], tuple[Row, ...]]
    prefix: str
    describe: Callable[[Any, Sequence[str] | None], dict[str, Any]]
    lacks: tuple[str, ...] = ()
    spelling: str = ""


class Resize(NamedTuple):
    """One way in which a family's leaf may change its shape (`tljax.adapt`).

    Attributes:
      path: the leaf, under `params/`.
      config: (family config, new value) → family config with the new value.
      source: (config.json as a dict, new value) → entries to set in config.json.
      resize: (array, family config before, new value, rng key) → array.
      undoable: whether export can return to the checkpoint's own shape without loss.
      how: the method, in a few words, for the note that reports the change.
    """

    path: str
    config: Callable[[Any, Any], Any]
    source: Callable[[Mapping[str, Any], Any], dict[str, Any]]
    resize: Callable[..., Any]
    undoable: bool
    how: str = ""


class Family(NamedTuple):
    """All that the rest of tljax knows about a family of models.

    Attributes:
      name: the reference's `model_type` ("bert"), or ours where the reference has none.
      configure: config.json as a dict → frozen, hashable config. Raises `UserError` for settings that the family
        does not implement, by name.
      backbone: config → linen module, a tower (see `tljax.models.tower`).
      carry: carry key → "example" (leading batch axis) or "broadcast".
      start: (config, inputs) → the first carry.
      finish: (config, carry) → outputs: `hidden`, `pooled` (None where the tower has none) and, for token towers,
        `mask` (B, T): 1 where a token counts in a mean.
      inputs: config → {input name: jax.ShapeDtypeStruct} for a batch of one, to initialise and to trace with.
      table: (config, prefix) → weight table of the backbone; our paths start with `backbone/`.
      prefixes: what may stand before the backbone's names, most specific first ("bert.", "").
      heads: reference class name → `HeadFormat`.
      own_pool: the pooling that the reference's classifier uses: "pooled", "cls" or "mean".
      sharding: selector rules, path under `params/` → tuple of mesh axis names or None, one per dimension.
      variants: published name → the entries of its config.json.
      resizes: name of the change ("image_size", "vocab_size") → `Resize`.
      infer: {source tensor name: shape} → config.json entries, for formats that carry no config; or None.
      cache: (config, batch size, length, dtype) → empty key–value cache, a dict of arrays whose first axis is the
        batch, for families that decode step by step; or None. It goes in as `inputs["cache"]`, with `cache_index`
        (int32 scalar: where the new tokens go), `attention_mask` (B, S) over the whole cache and `position_ids`
        (B, T); it comes back as `outputs["cache"]`.
      spellings: other published namings of the same weights ("keras"), each as `table`. A checkpoint is read by the one
        that knows most of its tensors, and written again by the same.
    """

    name: str
    configure: Callable[[Mapping[str, Any]], Any]
    backbone: Callable[[Any], Any]
    carry: Mapping[str, str]
    start: Callable[[Any, Inputs], Tree]
    finish: Callable[[Any, Tree], Outputs]
    inputs: Callable[[Any], Mapping[str, Any]]
    table: Callable[[Any, str], Table]
    prefixes: tuple[str, ...]
    heads: Mapping[str, HeadFormat]
    own_pool: str
    sharding: Sequence[tuple[str, tuple]]
    variants: Mapping[str, Mapping[str, Any]]
    resizes: Mapping[str, Resize] = {}
    infer: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]] | None = None
    cache: Callable[..., dict[str, Any]] | None = None
    spellings: Mapping[str, Callable[[Any, str], Table]] = {}


class Model(NamedTuple):
    """A static, hashable description of a model: safe as a static argument of `jax.jit`; it holds no arrays.

    Attributes:
      family: key into the table of families.
      config: the family's frozen config.
      backbone: linen module; `backbone.stages` lists its stages in depth order.
      head: linen module (outputs → outputs with `logits` or another result), or None.
      source: the checkpoint's config.json verbatim, as text; "{}" where there was none. Its entry `weights_format`
        names the spelling of the weights where that is not the family's first.
      stop: the first stage that does not run (a pooler that nobody reads); None runs all.
      start: the first stage that runs: the inputs are then what the stage before it returned, the carry. "head" runs
        the head alone, on the outputs of the backbone. None runs all, from the family's own inputs. What the carry has
        that is the same for all examples stands in the wing `carried` of the parameters.
      groups: of equal neighbouring stages, each of which runs under one scan; see `tljax.models.scan`.
    """

    family: str
    config: Any
    backbone: Any
    head: Any = None
    source: str = "{}"
    stop: str | None = None
    start: str | None = None
    groups: tuple[tuple[str, ...], ...] = ()


class Pretrained(NamedTuple):
    """What `tljax.load_pretrained` returns.

    Attributes:
      model: `Model`.
      variables: `params/backbone`, `params/head`, `batch_stats/backbone`, `extras` (flat: their name → array).
      processor: what turns raw text or images into inputs, or None where the checkpoint carries none.
    """

    model: Model
    variables: dict[str, Any]
    processor: Any


class Source(NamedTuple):
    """A split of a data set with random access.

    Attributes:
      records: `len` and integer indexing; each record is a dict: `text` (and `text_b` for pairs) or `image` (encoded
        bytes or a uint8 HWC array), `label` (int, float, or list of ints for several labels), `id`.
      classes: the names of the classes, or None.
      name: for messages and records.
    """

    records: Any
    classes: tuple[str, ...] | None
    name: str


class Task(NamedTuple):
    """One kind of problem: what is predicted, how wrong that is, how it is measured and read.

    `batch` is a dict of arrays from the data room: `inputs` (model inputs), `targets`, `weight` (B,), 0 for padding
    and the class or sample weight otherwise.

    Attributes:
      name: for records.
      head: linen module put on the backbone, or None to use the checkpoint's own.
      uses: the backbone output that the head reads: "hidden" or "pooled".
      inputs: batch → model inputs (pairs are folded into the batch axis here).
      targets: batch → targets as the loss wants them (one-hot for classification), an array or a dict of arrays.
      loss: (outputs, targets) → losses, with the shape of `weights(batch)`.
      weights: batch → weights of the losses, (B,) or (B, T).
      predict: outputs → dict of arrays with a leading example axis, jittable (`probabilities`, `score`).
      metrics: (predictions, targets as in the batches, records) → dict of floats and of tables; host side. `records`
        are those of the prepared source, in the order of the predictions. The keys `pictures` (a list of
        {"title", "png": bytes}) and `samples` (a list of rows) are shown in the report.
      decode: (predictions, records) → list of dicts, each a JSON line.
      main: (name of the metric that chooses between runs, "max" or "min").
      prepare: (source, processor) → (source, processor): records expanded or packed, and a processor that makes this
        task's targets.
      question: as `prepare`, for records to predict for, where that differs: a language model continues them. Their
        batches have no `targets`.
      infer: (model, variables, batch) → predictions, instead of one forward pass and `predict`: generation; or None.
      fill: (model, variables, processor) → parameters of the head, where its start is computed; or None.
      own_head: whether the parameters of `head` are those of the checkpoint's own head, where it has one.
      feature: outputs → one vector an example (B, D), as the head reads it; None is the mean over tokens or pixels.
      parts: name → task, where this one is several that share a backbone; each reads its own head's outputs.
    """

    name: str
    head: Any
    uses: str
    inputs: Callable[[Tree], Inputs]
    targets: Callable[[Tree], Any]
    loss: Callable[[Outputs, Any], Any]
    weights: Callable[[Tree], Any]
    predict: Callable[[Outputs], dict[str, Any]]
    metrics: Callable[[Mapping[str, Any], Any, Sequence[Any]], dict[str, Any]]
    decode: Callable[[Mapping[str, Any], Sequence[Any]], list[dict[str, Any]]]
    main: tuple[str, str]
    prepare: Callable[[Source, Any], tuple[Source, Any]] = lambda source, processor: (source, processor)
    question: Callable[[Source, Any], tuple[Source, Any]] | None = None
    infer: Callable[..., dict[str, Any]] | None = None
    fill: Callable[..., dict[str, Any]] | None = None
    own_head: bool = False
    feature: Callable[[Outputs], Any] | None = None
    parts: Mapping[str, "Task"] = {}


class Loss(NamedTuple):
    """A loss as a sum and its weight, divided once, so that masked, accumulated and sharded batches agree."""

    sum: Any
    weight: Any


class Survey(NamedTuple):
    """A pass over whole streams between two steps, for what no batch can tell: centroids, pseudo-labels, weights.

    Attributes:
      streams: the data streams that are read, each once, whole, in order, without augmentation.
      read: (params, state, batch) → dict of arrays (B, …), jitted.
      digest: (state of the method, {stream: {name: (N, …) NumPy array}}) → state of the method. A labelled stream's
        `targets` are there too.
      every: "epoch" (of the stream `train`) or "start": before the first step only.
    """

    streams: tuple[str, ...]
    read: Callable[..., dict[str, Any]]
    digest: Callable[[Any, Mapping[str, Mapping[str, Any]]], Any]
    every: str = "epoch"


class Method(NamedTuple):
    """An objective. A method is built by `method(forward, task, **options) -> Method`.

    `forward(params, state, inputs, rng, *, train=True, hidden_states=False) -> (outputs, state)` runs backbone and
    head; `state` is a dict whose `batch_stats` it renews and whose `method` is the method's own; `params` is the whole
    nested tree with its wings `backbone`, `head`, `method`. An option `teacher` is a section as `config.model`, or
    "start", the checkpoint of `config.model` itself; the method is given `teacher(params, inputs) -> outputs` in its
    place, a frozen model in inference mode. Its attribute `shapes` is as that of `init`, and `stages` names the stages
    of the `hidden_states`.

    Attributes:
      loss: (params, state, batches, rng, step) → (dict of named `Loss`, state, dict of scalar metrics). `batches` is
        a dict of the named streams (`train`, and what else the method asks for).
      init: (rng, shapes) → (params of the wing `method`, state of the method); `shapes` are those of the outputs of
        `forward` for a batch of one, with its hidden states, and `feature` (1, D) of `task.feature`. Raises
        `UserError` for a task or model that the method cannot serve.
      start: (state, live, counts) → state of the method before the first step; `live` are the flat float32 masters
        of all leaves that are live at any time of the run (a teacher copies them), `counts` the number of records of
        each stream.
      combine: (gradients by loss, key) → (gradients, dict of scalar metrics); None is the plain sum, which needs one
        backward pass only.
      after_step: (state, live, step) → state of the method, after the update (a moving average); `live` are the
        masters that are live in this step, which may be fewer than `start` was given, and `step` (int32) the number of
        updates done, this one too.
      streams: stream → "labelled" or "unlabelled", whose batches come without targets, whatever the data hold.
      views: stream → names of the random views of each example that it needs; `batch["views"][name]` are inputs. They
        take the place of the stream's own: its batches have no `inputs`, which would cost a view more. A method that
        wants the examples as they are, too, names a view for them.
      domains: (source stream, target stream), whose distance the report shows; () without domains.
      survey: see `Survey`, or None.
      trained_head: whether the method goes on with a head that was trained before, and a new one is refused.
      changes_inputs: whether the loss changes the inputs, or reads them by itself, so that it cannot be given what a
        frozen stage made of them.
      mixing: number of records of each stream → each stream's share of the `config.train.batch_size` examples of a
        step; None gives every stream batches of that size.
    """

    loss: Callable[..., tuple[dict[str, Loss], Any, dict[str, Any]]]
    init: Callable[..., tuple[Any, Any]] = lambda rng, shapes: ({}, {})
    start: Callable[..., Any] = lambda state, live, counts: state
    combine: Callable[[Mapping[str, Any], Any], tuple[Any, dict[str, Any]]] | None = None
    after_step: Callable[[Any, Any, Any], Any] = lambda state, live, step: state
    streams: Mapping[str, str] = {"train": "labelled"}
    views: Mapping[str, tuple[str, ...]] = {}
    domains: tuple[str, ...] = ()
    survey: Survey | None = None
    trained_head: bool = False
    changes_inputs: bool = False
    mixing: Callable[[Mapping[str, int]], Mapping[str, float]] | None = None


class Adapter(NamedTuple):
    """What a strategy puts beside one kernel; see `tljax.models.adapters`.

    Attributes:
      name: of its branch: "lora", "prefix" (`tljax.models.adapters.NAMES`). A kernel has one of each name at most.
      leaves: their paths below the module of the kernel ("lora/a").
      init: (rng, kernel) → {path as in `leaves`: float32 array}.
      frozen: those of `leaves` that never train ("lora/scale").
      rates: path as in `leaves` → learning-rate factor, where it is not 1.
      source: a folder in PEFT's format, from which the values are read instead; None takes those of `init`.
    """

    name: str
    leaves: tuple[str, ...]
    init: Callable[[Any, Any], Mapping[str, Any]]
    frozen: tuple[str, ...] = ()
    rates: Mapping[str, float] = {}
    source: str | None = None


class Quantization(NamedTuple):
    """How a kernel that never trains is held; see `tljax.models.quantized`.

    Attributes:
      kind: "int8" or "nf4".
      double: whether the scales are quantised, too.
      named: whether somebody named this kernel; one that nobody named is left as it is where it trains.
    """

    kind: str
    double: bool = False
    named: bool = False


class Plan(NamedTuple):
    """Who trains and how fast. A strategy is `strategy(stages, paths, **options) -> Plan`; plans compose.

    `stages` is the tuple of stage names under `backbone/`, in depth order; `paths` the tuple of leaf paths of the
    parameter tree (`backbone/block0/…`, `head/…`, `method/…`).

    Attributes:
      live: time → frozenset of live paths. Composed plans intersect. A leaf that is live stays live.
      changes: the times above 0 at which more leaves become live, ascending. Composed plans unite.
      unit: what time is counted in: "steps", "epochs", or "run", from 0 at the start of the run to 1 at its end. A
        composed plan counts steps.
      rates: path → learning-rate factor, for paths where it is not 1. Composed plans multiply.
      reset: paths that start from random values and not from the checkpoint. Composed plans unite.
      batch_stats: "auto" (running statistics of live stages move), "frozen" or "train".
      pull: path → strength of a pull towards the leaf's first value: strength · (leaf − first) is added to its
        gradient. Composed plans add up.
      mixed: path → probability with which each number of the leaf is its first value in a step's forward pass, and the
        rest moved so that the mean stays. Of composed plans the highest counts.
      average: the decay of an exponential moving average of the live leaves, which is evaluated, saved as the best and
        exported in their place; None without one. One of the composed plans may have it.
      adapters: path of a kernel → what stands beside it. Of composed plans a kernel has all, and none where another
        plan never lets it train; they are live as soon as the others let the kernel train.
      quantized: path of a kernel → how it is held in few bits. Composed plans unite; it must never be live.
    """

    live: Callable[[float], frozenset[str]]
    changes: tuple[float, ...] = ()
    unit: str = "steps"
    rates: Mapping[str, float] = {}
    reset: frozenset[str] = frozenset()
    batch_stats: str = "auto"
    pull: Mapping[str, float] = {}
    mixed: Mapping[str, float] = {}
    average: float | None = None
    adapters: Mapping[str, tuple[Adapter, ...]] = {}
    quantized: Mapping[str, Quantization] = {}
