"""From a config to an `Experiment`: data, model, task and head, method, strategies.

The order of initialisation is fixed. Data come first (they say how many classes there are), then the model (shapes and
pretrained backbone), task and head, method, strategies, their adapters, and random values where a strategy resets.
Whatever is random has its own key, so that one choice does not move another's random numbers.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from tljax import strategies, tasks
from tljax.assembly.adapters import with_adapters
from tljax.assembly.model import make_model
from tljax.assembly.objective import (
    check_head,
    check_streams,
    objective_of,
    with_feature,
    with_feature_shape,
)
from tljax.assembly.placing import Placement, check_placement, mesh_of
from tljax.assembly.quantizing import exchanged, quantized_leaves, rounded
from tljax.assembly.reading import Reading, check_batches, check_tasks, reading_of, sharers, task_of
from tljax.assembly.sections import Entry, ModelSection, Select
from tljax.assembly.stages import scan_notes, scanned, training_stages
from tljax.base.configs import SECTIONS
from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.tables import call, lookup, suggest
from tljax.base.types import Method, Model, Plan, Source, Task
from tljax.checkpoints.adapt import init_head, output_shapes
from tljax.data.processors import PROCESSORS
from tljax.data.sources import open_source
from tljax.data.subsets import subset
from tljax.models import get_family
from tljax.models.forward import init_variables
from tljax.sharding import on_host
from tljax.strategies.compose import compose
from tljax.tasks.spec import TaskSpec
from tljax.train.probe import Probe
from tljax.train.settings import Settings


class Experiment(NamedTuple):
    """A config as objects, before anything is trained.

    Attributes:
      config: resolved, plain.
      seed: of everything.
      settings: the section `train`.
      mesh: of devices.
      model: with the task's head on it; its `stop` is the pooler where the task does not read it.
      variables: pretrained, with the new head and the method's wing, in the stored dtypes.
      readers: entry name → the processor that the checkpoint or the config gives.
      processors: entry name → the one that the task makes of it.
      entries: entry name → `Entry`.
      sources: entry name → `Source`, as the task prepares it.
      task: `Task`.
      method: `Method`, as it is at the start.
      make_method: (model, stages in training mode) → `Method`.
      method_state: its first state.
      plan: the composed strategies.
      stages: the stages that run, in depth order.
      fresh_head: whether the head has leaves that no checkpoint filled.
      notes: what `adapt` did, and what cannot be done.
      placement: where its leaves lie.
      cached: steps done → the experiment that is trained from there on, with a stage cache or without; see
        `tljax.assembly.caching`. Empty without caches.
    """

    config: dict[str, Any]
    seed: int
    settings: Settings
    mesh: Any
    model: Model
    variables: dict[str, Any]
    readers: dict[str, Any]
    processors: dict[str, Any]
    entries: dict[str, Entry]
    sources: dict[str, Source]
    task: Task
    method: Method
    make_method: Callable[[Model, tuple[str, ...]], Method]
    method_state: Any
    plan: Plan
    stages: tuple[str, ...]
    fresh_head: bool
    notes: tuple[str, ...]
    placement: Placement = Placement()
    cached: Mapping[int, Any] = {}

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, or None; None too where several tasks have each its own."""
        return None if self.task.parts else _first(self.sources).classes

    def task_of(self, name: str) -> Task:
        """The task of the data entry `name`."""
        return task_of(self.task, self.entries[name])

    def method_at(self, step: int) -> Method:
        """The method as it is at `step`: the stages that are live by then run in training mode."""
        return self.make_method(self.model_at(step), training_stages(self.plan, step, self.stages, self.variables))

    def model_at(self, step: int) -> Model:
        """The model as the method runs it at `step`: stages are scanned together that are equally live by then."""
        return scanned(self.model, self.variables, self.plan.live(step)) if self.settings.scan else self.model

    @property
    def reading(self) -> Reading:
        """How many examples a step reads of each stream of the method, and what an epoch is."""
        missing = [name for name in self.method.streams if name not in self.sources]
        if missing:
            named, method = ", no ".join(f"`{name}`" for name in missing), self.config.get("method") or {}
            raise UserError(
                f"config.data has no {named}, which the method {method.get('name', 'supervised')} reads, so there is "
                "nothing to train on."
            )
        return _reading(self.method, self.settings, self.mesh, self.entries, self.sources)


@on_host()
def build(
    config: Mapping[str, Any], *, data_dir: str | None = None, devices: Any = None, make: Callable = make_model
) -> Experiment:
    """The objects that `config` (plain nested dicts) describes, with all leaves in the memory of the host.

    Args:
      config: the sections of a config; see `tljax.base.configs.SECTIONS` and docs/configs.md.
      data_dir: the folder of raw data, for sources that read files; default TLJAX_DATA.
      devices: those of the mesh, a sequence; default: all of the run.
      make: what makes models, as `make_model`.

    Raises:
      UserError: an unknown section, name or key, a rule that matches nothing, data that do not fit the task …
    """
    _check_sections(config)
    seed = int(config.get("seed", 0))
    settings = call(Settings, (), config.get("train"), where="config.train").check()
    mesh, placement = mesh_of(config.get("mesh"), devices)
    entries = _entries(config.get("data") or {})
    check_tasks(config.get("task"), entries)
    check_batches(settings, mesh, entries)
    sources = open_entries(config, data_dir=data_dir)
    key = jax.random.key(seed)

    section = call(ModelSection, (), config.get("model"), where="config.model")
    model, variables, processor, notes = make(section, jax.random.fold_in(key, 0))
    readers = {name: _processor(name, entry, processor, section, model) for name, entry in entries.items()}

    spec = _spec(model, entries, sources, readers)
    task = with_feature(_named(tasks.TABLE, config.get("task"), "classification", "task", (spec,)))
    prepared = {name: task_of(task, entries[name]).prepare(source, readers[name]) for name, source in sources.items()}
    model, variables, fresh_head = _with_head(model, variables, task, jax.random.fold_in(key, 1), readers)
    stop = "pooler" if task.uses == "hidden" and "pooler" in model.backbone.stages else None
    model = model._replace(stop=stop)
    stages = tuple(s for s in model.backbone.stages if s != stop)

    make_method, teacher = objective_of(config, task, remat=settings.remat == "stages", mesh=mesh, make=make)
    # Which stages train follows from the paths, and some paths are the method's own: so it is made twice.
    method = make_method(model, ())
    check_streams(method, config.get("method"), entries)
    check_head(method, config.get("method"), fresh_head)
    wing, method_state = method.init(jax.random.fold_in(key, 2), _output_shapes(model, task, readers))
    if wing:
        variables["params"]["method"] = wing

    sources = {name: source for name, (source, _) in prepared.items()}
    read = all(name in sources for name in method.streams)
    lengths = _reading(method, settings, mesh, entries, sources).lengths(settings) if read else None
    plan = _plan(config.get("strategy") or {"fine_tune": {}}, stages, used_paths(variables, stop), lengths)
    variables = _begun(model, variables, plan, key)
    if teacher is not None:  # after the strategies: no strategy moves it
        variables["params"]["teacher"] = teacher
    check_placement(placement, {path: flatten(variables["params"])[path] for path in used_paths(variables, stop)})
    model = scanned(model, variables) if settings.scan else model
    experiment = Experiment(
        config=dict(config),
        seed=seed,
        settings=settings,
        mesh=mesh,
        model=model,
        variables=variables,
        readers=readers,
        processors={name: processor for name, (_, processor) in prepared.items()},
        entries=entries,
        sources=sources,
        task=task,
        method=method,
        make_method=make_method,
        method_state=method_state,
        plan=plan,
        stages=stages,
        fresh_head=fresh_head,
        placement=placement,
        notes=(*notes, *(scan_notes(model) if settings.scan else ())),
    )
    return experiment._replace(method=experiment.method_at(0))


def _check_sections(config: Mapping[str, Any]) -> None:
    unknown = [f"config.{key}. {suggest(key, SECTIONS)}" for key in config if key not in SECTIONS]
    raise_faults("The config has sections that do not exist:", unknown)
    # Those of which the verbs `probe` and `select` make something, and nobody else.
    call(Probe, (), config.get("probe"), where="config.probe")
    call(Select, (), config.get("select"), where="config.select").check()


def _output_shapes(model: Model, task: Task, readers: Mapping[str, Any]) -> dict[str, Any]:
    """What the model gives out for inputs as the processor of the training data makes them."""
    seen = _image_shape(model, readers.get("train") or next(iter(readers.values()), None))
    return with_feature_shape(task, output_shapes(model, hidden_states=True, inputs=seen))


def _image_shape(model: Model, processor: Any) -> dict[str, Any]:
    """{"pixel_values": the shape of one image as `processor` makes it}; {} where it has no size, or none are read."""
    own, size = get_family(model.family).inputs(model.config).get("pixel_values"), getattr(processor, "size", None)
    if own is None or size is None:
        return {}
    return {"pixel_values": jax.ShapeDtypeStruct((1, *size, own.shape[-1]), own.dtype)}


def _reading(
    method: Method,
    settings: Settings,
    mesh: Any,
    entries: Mapping[str, Entry],
    sources: Mapping[str, Source],
) -> Reading:
    counts = {name: len(sources[name].records) for name in method.streams}
    return reading_of(method, settings, entries, counts, unit=sharers(mesh) * settings.accumulate)


def _entries(section: Mapping[str, Any]) -> dict[str, Entry]:
    given = {name: options for name, options in section.items() if options is not None}
    entries = {name: call(Entry, (), options, where=f"config.data.{name}") for name, options in given.items()}
    for name, entry in entries.items():
        entry.check(name)
    raise_faults("The entries of config.data overlap:", _overlaps(entries))
    return entries


def _overlaps(entries: Mapping[str, Entry]) -> list[str]:
    """What is held out of a split must be held out of what trains on it, by the same choice."""
    faults = []
    for (one, a), (two, b) in itertools.combinations(entries.items(), 2):
        trained = any(name == "train" or name.startswith("train_") for name in (one, two))
        related = trained or None not in (a.hold_out, b.hold_out)
        if (a.source, a.split) == (b.source, b.split) and a.take != b.take and related:
            unlike = [f for f in ("hold_out", "classes", "seed") if getattr(a, f) != getattr(b, f)]
            faults += [
                f"{one} and {two} take two sides of {a.source} ({a.split}), with different {field}: "
                f"{getattr(a, field)!r} and {getattr(b, field)!r}."
                for field in unlike
            ]
    return faults


def open_entries(config: Mapping[str, Any], *, data_dir: str | None = None) -> dict[str, Source]:
    """The source of each entry of `config.data`, with its choices made."""
    entries = _entries(config.get("data") or {})
    return {name: _source(entry, int(config.get("seed", 0)), data_dir) for name, entry in entries.items()}


def _source(entry: Entry, seed: int, data_dir: str | None) -> Source:
    source = open_source(entry.source, split=entry.split, data_dir=data_dir, columns=entry.columns)
    return subset(
        source,
        classes=entry.classes,
        shots_per_class=entry.shots_per_class,
        hold_out=entry.hold_out,
        take=entry.take,
        skip=entry.skip,
        limit=entry.limit,
        seed=seed if entry.seed is None else entry.seed,
    )


def _spec(
    model: Model, entries: Mapping[str, Entry], sources: Mapping[str, Source], readers: Mapping[str, Any]
) -> TaskSpec:
    """What the task may know; of several tasks, what each may know of its own data."""
    family, outputs = get_family(model.family), output_shapes(model._replace(head=None))
    tasks = list(dict.fromkeys(entry.task for entry in entries.values() if entry.task is not None))
    spec = TaskSpec(
        classes=None if tasks else _classes(sources),
        own_pool=family.own_pool,
        pools=_pools(outputs),
        head=model.head,
        dropout=_dropout(model),
        family=family.name,
        config=model.config,
        outputs=outputs,
        processor=readers.get("train") or next(iter(readers.values()), None),
    )
    parts = {}
    for task in tasks:
        mine = {name: source for name, source in sources.items() if entries[name].task == task}
        parts[task] = spec._replace(classes=_classes(mine), processor=readers[next(iter(mine))])
    return spec._replace(parts=parts)


def _first(sources: Mapping[str, Source]) -> Source:
    if not sources:
        raise UserError("config.data names no data: give it `train`, `validation` or `test`.")
    return sources.get("train") or next(iter(sources.values()))


def _classes(sources: Mapping[str, Source]) -> tuple[str, ...] | None:
    classes = _first(sources).classes
    faults = [
        f"config.data.{name} has the classes {list(source.classes)}, and not {list(classes)}."
        for name, source in sources.items()
        if classes is not None and source.classes is not None and source.classes != classes
    ]
    raise_faults("The splits disagree about the classes:", faults)
    return classes


def _processor(name: str, entry: Entry, processor: Any, section: ModelSection, model: Model) -> Any:
    where, options = f"config.data.{name}.processor", {**section.processor, **(entry.processor or {})}
    named = options.pop("name", None)
    if processor is None or named is not None:
        named = named or _processor_for(get_family(model.family).inputs(model.config))
        if named is None:
            raise UserError(
                f"The checkpoint {section.source} carries no tokenizer, and config.data.{name} holds text. Name a "
                f"processor in config.model.processor. {suggest('', PROCESSORS)}"
            )
        processor, options = call(lookup(PROCESSORS, named, what="processor"), (), options, where=where), {}
    if hasattr(model.config, "vocab_size") and hasattr(processor, "check_vocabulary"):
        processor.check_vocabulary(model.config.vocab_size)
    return processor.replace(**options) if options else processor


def _processor_for(inputs: Mapping[str, Any]) -> str | None:
    """The processor of a model with these inputs and no checkpoint, where one is plain."""
    names = {"pixel_values": "image", "input_values": "audio"}
    return next((names[name] for name in inputs if name in names), None)


def _named(table: Mapping[str, str], section: Mapping[str, Any] | None, default: str, what: str, given: tuple) -> Any:
    options = dict(section or {})
    function = lookup(table, options.pop("name", default), what=what)
    return call(function, given, options, where=f"config.{what}")


def _pools(shapes: Mapping[str, Any]) -> tuple[str, ...]:
    """The poolings that a backbone's outputs of these shapes allow."""
    pools = ["mean"]
    if shapes["hidden"].ndim == 3:
        pools += ["cls", "last"] if "mask" in shapes else ["cls"]
    if shapes.get("pooled") is not None:
        pools.append("pooled")
    return tuple(pools)


def _dropout(model: Model) -> float:
    """The rate that the reference's classifier would use."""
    rate = getattr(model.config, "classifier_dropout", None)
    return getattr(model.config, "hidden_dropout_prob", 0.0) if rate is None else rate


def _with_head(
    model: Model, variables: Mapping[str, Any], task: Task, key: jax.Array, readers: Mapping[str, Any]
) -> tuple[Model, dict, bool]:
    """(`model` with the task's head, its variables, whether the head has leaves that no checkpoint filled).

    A head that is not the checkpoint's own starts as the task says, else from its initialisers.
    """
    head, params = task.head, dict(variables["params"])
    own = model.head is not None and (head is model.head or task.own_head)
    fresh = False
    if not own and head is not None:
        params.pop("head", None)
        if task.fill is not None:
            with jax.default_device(None):  # it may run a tower, for which the accelerators are there
                made = task.fill(model, variables, next(iter(readers.values()), None))
        else:
            made = init_head(model, head, key)
            fresh = bool(made)
        if made:
            params["head"] = made
    return model._replace(head=head), {**variables, "params": params}, fresh


def used_paths(variables: Mapping[str, Any], stop: str | None) -> tuple[str, ...]:
    """The leaf paths of the stages that run, of the head, of the method and of its teacher."""
    unused = f"backbone/{stop}/"
    return tuple(path for path in flatten(variables["params"]) if stop is None or not path.startswith(unused))


def _plan(
    section: Mapping[str, Any],
    stages: tuple[str, ...],
    paths: tuple[str, ...],
    lengths: Mapping[str, float] | None,
) -> Plan:
    plans = {}
    for name, options in section.items():
        strategy = lookup(strategies.TABLE, name, what="strategy")
        plans[name] = call(strategy, (stages, paths), options or {}, where=f"config.strategy.{name}")
    return compose(plans, paths, lengths)


def _begun(model: Model, variables: dict[str, Any], plan: Plan, key: jax.Array) -> dict[str, Any]:
    """`variables` as training begins: with kernels in few bits, adapters, and random values, as the plan says."""
    held = quantized_leaves(model, variables, plan.quantized)
    variables = rounded(variables, held, plan.adapters)
    variables = with_adapters(model, variables, plan.adapters, jax.random.fold_in(key, 4))
    return _reset(model, exchanged(variables, held), plan, jax.random.fold_in(key, 3))


def _reset(model: Model, variables: dict[str, Any], plan: Plan, key: jax.Array) -> dict[str, Any]:
    """`variables` with random values where the plan resets, running statistics of reset stages included."""
    if not plan.reset:
        return variables
    random = jax.jit(init_variables, static_argnums=0)(model, key)
    fresh = flatten(random["params"])
    params = {
        path: fresh[path].astype(leaf.dtype) if path in plan.reset and path in fresh else leaf
        for path, leaf in flatten(variables["params"]).items()
    }
    parents = {path.rsplit("/", 1)[0] for path in plan.reset}
    fresh_stats = flatten(random["batch_stats"])
    stats = {
        path: fresh_stats[path] if path.rsplit("/", 1)[0] in parents else leaf
        for path, leaf in flatten(variables.get("batch_stats", {})).items()
    }
    return {**variables, "params": unflatten(params), "batch_stats": unflatten(stats)}
