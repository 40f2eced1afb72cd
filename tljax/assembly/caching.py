"""The stage cache: what the frozen lower stages make of the data is computed once, stored, and trained on.

What reads a cache is an experiment like any other: its model starts at a later stage (`Model.start`), its sources are
stores, and its processors put stored examples together. It stands in `Experiment.cached` of the one that is trained.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.assembly.experiment import Experiment
from tljax.assembly.phases import starts_of
from tljax.assembly.reading import stream_seed
from tljax.assembly.running import evaluation_size, placed
from tljax.assembly.stages import training_stages
from tljax.assembly.storing import content_of, store_facts, store_name
from tljax.base.errors import raise_faults
from tljax.base.types import Model, Source
from tljax.data.prepare import cache_dir
from tljax.data.streams import eval_stream
from tljax.features.reading import Records, StoredProcessor
from tljax.features.store import Field, Store, is_whole, write
from tljax.models import get_family
from tljax.models.adapters import PROMPT
from tljax.models.forward import HEAD, forward
from tljax.models.heads import Classifier, pool

WORTH = 1.5
"""A cache is worth its making from so many passes over the training data on."""


def with_cache(experiment: Experiment, *, say: Callable[[str], None]) -> Experiment:
    """`experiment` with what reads its caches, as `config.train.cache` says; itself where there is none to be used.

    Where more stages become live in the course of the run, the cache moves down: there is one for each part of the run
    in which the lowest live stage is another.

    Args:
      experiment: with the values from which training starts.
      say: prints one line: what is stored or found where, or why not.

    Raises:
      UserError: a folder is named in the config, and these stages, data or method cannot be cached; says why.
      RunError: the disk is full.
    """
    if experiment.settings.cache == "off":
        return experiment
    parts, faults = _parts(experiment), _refused(experiment)
    if faults:
        say("no stage cache: " + " ".join(faults))
        return experiment
    views, spent = {}, 0
    for part in parts:
        views[part.start], size = _view(experiment, part, experiment.settings.cache_limit - spent, say)
        spent += size
    return experiment._replace(cached=views)


class _Part(NamedTuple):
    """`steps` steps of a run from `start` on, in which `stage` is the lowest that trains; "head" where none does."""

    start: int
    steps: int
    stage: str


def _parts(experiment: Experiment) -> list[_Part]:
    reading, found = experiment.reading, []
    steps = reading.timed(experiment.settings).total_steps(reading.records)
    starts = starts_of(experiment, steps)
    for start, end in zip(starts, (*starts[1:], steps), strict=True):
        training = training_stages(experiment.plan, start, experiment.stages, experiment.variables)
        stage = next((stage for stage in experiment.stages if stage in training), HEAD)
        if found and found[-1].stage == stage:
            start = found.pop().start
        found.append(_Part(start, end - start, stage))
    return found


def estimates(experiment: Experiment) -> dict[int, tuple[int, str]]:
    """Step → (bytes that the stage cache from there on takes at most, why there is none); nothing is stored.

    Raises:
      UserError: as `with_cache`.
    """
    if experiment.settings.cache == "off":
        return {}
    parts, faults = _parts(experiment), _refused(experiment)
    if faults:
        return {0: (0, " ".join(faults))}
    found, spent = {}, 0
    for part in parts:
        _, layouts, faults = _plan(experiment, part, experiment.settings.cache_limit - spent, run=False)
        found[part.start] = (0 if faults else _size(experiment, layouts), " ".join(faults))
        spent += found[part.start][0]
    return found


def _refused(experiment: Experiment) -> list[str]:
    """Why "auto" makes no cache at all; a folder in the config is refused then."""
    faults = _faults(experiment)
    if all(part.stage == experiment.stages[0] for part in _parts(experiment)):
        faults.insert(0, _bottom(experiment))
    if experiment.settings.cache != "auto":
        raise_faults("The stages below the lowest live one cannot be cached (config.train.cache):", faults)
    return faults


def _bottom(experiment: Experiment) -> str:
    return f"{experiment.stages[0]}, the lowest stage, trains."


def _plan(
    experiment: Experiment, part: _Part, limit: float, *, run: bool
) -> tuple["_Cut | None", dict[str, "_Layout"], list[str]]:
    """(where the tower is cut, entry → what is stored of it, why there is no cache in this part of the run)."""
    how, faults = experiment.settings.cache, []
    passes = part.steps * experiment.reading.examples / experiment.reading.records
    if part.stage == experiment.stages[0]:
        faults = [_bottom(experiment)]
    elif how == "auto" and passes < WORTH:
        faults = [f"the training data are read {passes:.1f} times, for which a cache is not worth its making."]
    if faults:
        return None, {}, faults
    cut = _cut(experiment, part.stage)
    layouts = {name: _layout(experiment, cut, name, run=run) for name in experiment.sources}
    unfit = [fault for layout in layouts.values() for fault in layout.faults]
    if how != "auto":
        raise_faults("What the frozen stages make cannot be stored (config.train.cache):", unfit)
    return cut, layouts, unfit or (_too_large(experiment, layouts, limit) if how == "auto" else [])


def _view(experiment: Experiment, part: _Part, limit: float, say: Callable[[str], None]) -> tuple[Experiment, int]:
    """(what stands in the experiment's place in this part of the run, the bytes of its stores)."""
    how = experiment.settings.cache
    cut, layouts, faults = _plan(experiment, part, limit, run=True)
    if faults:
        say(f"no stage cache{f' from step {part.start} on' if part.start else ''}: " + " ".join(faults))
        return experiment, 0
    root = cache_dir() / "features" if how == "auto" else Path(how).expanduser()
    sources, processors = {}, {}
    for name in experiment.sources:
        sources[name] = _stored(experiment, cut, name, layouts[name], root, say)
        lengths = _lengths(experiment.processors[name]) if layouts[name].ragged else ()
        processors[name] = StoredProcessor(layouts[name].fields, lengths)
    params = dict(experiment.variables["params"])
    carried = layouts[next(iter(layouts))].carried
    if carried:
        params["carried"] = carried
    cached = experiment._replace(
        model=cut.model,
        variables={**experiment.variables, "params": params},
        sources=sources,
        processors=processors,
        # What changed them at random is in the store.
        entries={name: entry._replace(augment=None) for name, entry in experiment.entries.items()},
    )
    return cached._replace(method=cached.method_at(part.start)), _size(experiment, layouts)


class _Cut(NamedTuple):
    """Where the tower is cut.

    Attributes:
      start: the first stage that runs, or "head".
      below: the stages whose work is stored.
      model: the rest of the model.
      run: jitted (params, batch_stats, inputs) → dict of what is stored, and what is the same for all examples.
    """

    start: str
    below: tuple[str, ...]
    model: Model
    run: Callable[..., dict[str, Any]]


def _cut(experiment: Experiment, start: str) -> _Cut:
    model = experiment.model
    family = get_family(model.family)
    below = tuple(experiment.stages[: experiment.stages.index(start)] if start != HEAD else experiment.stages)
    # A linear layer on pooled features reads nothing else: one vector an example is stored and not a map.
    vector = start == HEAD and isinstance(model.head, Classifier) and _method_name(experiment) == "supervised"
    how = model.head.pool if vector else None

    @jax.jit
    def run(params, batch_stats, inputs):
        stop = model.stop if start == HEAD else start
        variables = {"params": params.get("backbone", {}), "batch_stats": batch_stats.get("backbone", {})}
        carry = family.start(model.config, inputs)
        carry = model.backbone.apply(variables, carry, stop=stop, groups=model.groups)
        if start != HEAD:
            return carry
        outputs = {key: x for key, x in family.finish(model.config, carry).items() if x is not None}
        return {"pooled": pool(outputs, how)} if vector else outputs

    head = model.head.clone(pool="pooled") if vector else model.head
    return _Cut(start, below, model._replace(start=start, head=head), run)


def _faults(experiment: Experiment) -> list[str]:
    """Why nothing can be cached, whatever the data are."""
    task, method, faults = experiment.task, experiment.method, []
    if method.changes_inputs:
        faults.append("the method changes the inputs, or reads them by itself.")
    if task.infer is not None or any(getattr(p, "makes_targets", False) for p in experiment.processors.values()):
        faults.append(f"the task {task.name} makes more of an example than inputs and a label.")
    if any(adapter.name == PROMPT for mine in experiment.plan.adapters.values() for adapter in mine):
        faults.append("the strategy prompt puts tokens before those of the data.")
    inputs = {"input_ids": np.zeros((1, 1), np.int32)}
    try:
        same = all(each.inputs({"inputs": inputs}) is inputs for each in (task, *task.parts.values()))
    except (KeyError, IndexError, ValueError):
        same = False
    if not same:
        faults.append(f"the task {task.name} folds several inputs into one.")
    for name in method.streams:
        entry = experiment.entries[name]
        if entry.views or (entry.augment and not entry.versions):
            fault = f"config.data.{name}.{'views' if entry.views else 'augment'} changes each example at random"
            faults.append(f"{fault}{'.' if entry.views else f'; config.data.{name}.versions would draw a few, once.'}")
    if jax.process_count() > 1:
        faults.append("several processes train together.")
    return faults


def _size(experiment: Experiment, layouts: Mapping[str, "_Layout"]) -> int:
    """Bytes of the stores, at most: short examples take less."""
    return sum(
        layouts[name].bytes * len(source.records) * len(_versions(experiment, name))
        for name, source in experiment.sources.items()
    )


def _too_large(experiment: Experiment, layouts: Mapping[str, "_Layout"], limit: float) -> list[str]:
    size = _size(experiment, layouts)
    if size <= limit:
        return []
    return [f"it would take up to {size / 1e9:.1f} GB, and config.train.cache_limit allows {limit / 1e9:.1f}."]


class _Layout(NamedTuple):
    """What is stored of an entry's examples.

    Attributes:
      fields: key → `Field`.
      carried: what is the same for all examples.
      ragged: whether examples have lengths of their own.
      bytes: of one example, of the longest length.
      faults: why it cannot be stored.
    """

    fields: dict[str, Field]
    carried: dict[str, Any]
    ragged: bool
    bytes: int
    faults: list[str]


def _layout(experiment: Experiment, cut: _Cut, name: str, *, run: bool) -> _Layout:
    """From the first batch of the entry, and from the shapes of one that is a token shorter.

    Without `run` nothing is computed: the values of what is carried, and of what fills, are then not told.
    """
    batch = next(
        eval_stream(experiment.sources[name], experiment.processors[name], batch_size=evaluation_size(experiment))
    )
    inputs, faults = batch["inputs"], []
    params, stats = placed(experiment)
    found = cut.run(params, stats, inputs) if run else jax.eval_shape(cut.run, params, stats, inputs)
    unread = _unread(experiment, cut, name, found, batch)
    found = {key: x for key, x in found.items() if key not in unread}
    shapes = jax.tree.map(np.shape, found)
    ragged = "input_ids" in inputs
    mask = inputs.get("attention_mask")
    if ragged and (mask is None or (np.diff(mask, axis=1) > 0).any()):
        faults.append(f"the texts of {name} are not padded on the right, under a mask.")
    if not ragged and len({np.shape(x) for x in inputs.values()}) != 1:
        faults.append(f"the examples of {name} have inputs of several shapes.")
    shorter = shapes
    if ragged:
        less = {key: x[:, :-1] for key, x in inputs.items()}
        shorter = jax.tree.map(np.shape, jax.eval_shape(cut.run, params, stats, less))
    kinds = get_family(experiment.model.family).carry
    dtype, fields, carried, largest = experiment.settings.cache_dtype, {}, {}, 0
    for key, value in found.items():
        if isinstance(value, tuple):
            faults.append(f"{key} is several arrays.")
        elif kinds.get(key) == "broadcast":
            carried[key] = value
            if shapes[key] != shorter[key]:
                faults.append(f"{key}, which is the same for all examples, changes with their length.")
        else:
            free = tuple(-1 if a != b else a for a, b in zip(shapes[key][1:], shorter[key][1:], strict=True))
            given = str(value.dtype)
            stored = dtype if jnp.issubdtype(value.dtype, jnp.floating) else given
            fill = _fill(np.asarray(value), free, inputs) if run and -1 in free else 0.0
            fields[key] = Field(free, stored, given, fill)
            longest = _lengths(experiment.processors[name])[-1] if ragged else 0
            largest += fields[key].size_at(longest) * jnp.dtype(stored).itemsize
    if experiment.entries[name].group_by_length and not any(-1 in field.shape for field in fields.values()):
        faults.append(f"config.data.{name}.group_by_length asks for lengths, and what would be stored has none.")
    return _Layout(fields, carried, ragged, int(largest), faults)


def _unread(
    experiment: Experiment, cut: _Cut, name: str, found: Mapping[str, Any], batch: Mapping[str, Any]
) -> frozenset[str]:
    """The keys of `found` with several arrays that nothing reads, for the loss and the predictions of a task.

    So are the maps of lower stages, which are handed on to heads that look at several. Methods other than the
    supervised one may look at anything.
    """
    several = {key for key, x in found.items() if isinstance(x, tuple)}
    if not several or _method_name(experiment) != "supervised":
        return frozenset()
    task = experiment.task_of(name)
    targets = task.targets(batch) if "targets" in batch else None
    variables = {kind: experiment.variables.get(kind, {}) for kind in ("params", "batch_stats")}

    def rest(carry):
        outputs, _ = forward(cut.model, variables, carry)
        return task.predict(outputs), () if targets is None else task.loss(outputs, targets)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(found))
    program = jax.make_jaxpr(rest)(shapes).jaxpr
    read = {id(each) for equation in program.eqns for each in equation.invars} | {id(each) for each in program.outvars}
    keys = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    return frozenset(several - {key for key, each in zip(keys, program.invars, strict=True) if id(each) in read})


def _method_name(experiment: Experiment) -> str:
    return (experiment.config.get("method") or {}).get("name", "supervised")


def _fill(values: np.ndarray, shape: tuple[int, ...], inputs: Mapping[str, Any]) -> float:
    """What stands where a short example is padded, where that is one number; else 0."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.all():
        return 0.0
    axis = 1 + max(i for i, n in enumerate(shape) if n < 0)
    row = int(np.argmin(mask.sum(-1)))
    padding = np.take(values[row : row + 1], np.arange(int(mask[row].sum()), mask.shape[1]), axis=axis)
    return float(padding.flat[0]) if (padding == padding.flat[0]).all() else 0.0


def _lengths(processor: Any) -> tuple[int, ...]:
    """The lengths of batches, ascending, as the processor of texts has them."""
    return tuple(sorted({*(n for n in processor.lengths if n <= processor.max_length), processor.max_length}))


def _stored(
    experiment: Experiment, cut: _Cut, name: str, layout: _Layout, root: Path, say: Callable[[str], None]
) -> Source:
    """The entry's source, read from the store, which is made where it is not there."""
    source = experiment.sources[name]
    content, labels, ids = content_of(source)
    folder = root / _key(experiment, cut, name, layout, content)
    there, versions = is_whole(folder), len(_versions(experiment, name))
    if not there:
        each = f", {versions} versions of each" if versions > 1 else ""
        say(f"storing what {cut.below[0]} … {cut.below[-1]} make of {name} ({len(source.records)} examples{each})")
    count = len(source.records) * versions
    store: Store = write(folder, layout.fields, count, _examples(experiment, cut, name, layout))
    say(f"stage cache of {name}: {store.bytes / 1e6:.1f} MB in {folder}{' (found there)' if there else ''}")
    return source._replace(records=Records(store, labels, ids))


def _examples(
    experiment: Experiment, cut: _Cut, name: str, layout: _Layout
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(position, length, arrays) of every example of the entry."""
    params, stats = placed(experiment)
    source, size = experiment.sources[name], evaluation_size(experiment)
    streams = (
        (number, eval_stream(source, experiment.processors[name], batch_size=size, version=number, **options))
        for number, options in enumerate(_versions(experiment, name))
    )
    for number, batch in ((number, batch) for number, stream in streams for batch in stream):
        found = jax.device_get(cut.run(params, stats, batch["inputs"]))
        mask = batch["inputs"].get("attention_mask") if layout.ragged else None
        for row, position in enumerate(batch["index"]):
            if position < 0:
                continue
            length = int(mask[row].sum()) if mask is not None else 1
            arrays = {}
            for key, field in layout.fields.items():
                arrays[key] = found[key][row][tuple(slice(0, length if n < 0 else n) for n in field.shape)]
            yield number * len(source.records) + int(position), length, arrays


def _versions(experiment: Experiment, name: str) -> list[dict[str, Any]]:
    """For each version of the entry's examples that is stored, what changes them: options of `eval_stream`."""
    entry = experiment.entries[name]
    if not entry.augment or name not in experiment.method.streams:
        return [{}]
    return [{"augment": entry.augment, "seed": stream_seed(experiment.seed, name)}] * (entry.versions or 1)


def _key(experiment: Experiment, cut: _Cut, name: str, layout: _Layout, content: str) -> str:
    """The name of a store: a digest of everything that decides what is in it."""
    facts = {
        **store_facts(experiment, cut.below, experiment.processors[name], content),
        "start": cut.start,
        "fields": {key: field._asdict() for key, field in layout.fields.items()},
        "pool": getattr(experiment.model.head, "pool", None) if cut.model.head != experiment.model.head else None,
        "versions": _versions(experiment, name),
    }
    return store_name(facts)
