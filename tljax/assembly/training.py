"""From an experiment to a compiled step and a job: live and frozen leaves, optimizer, shardings."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax.assembly.caching import estimates
from tljax.assembly.costs import full_step, one_by_one, shapes_key, step_flops, step_one_by_one
from tljax.assembly.domains import examiner
from tljax.assembly.experiment import Experiment, used_paths
from tljax.assembly.facts import digests, facts_of
from tljax.assembly.phases import Phase, at, enter, make_phases, masters, phase_at, since, split_leaves
from tljax.assembly.reading import stream_seed
from tljax.assembly.running import evaluation_batches, predictor
from tljax.assembly.shapes import are_shapes, put
from tljax.assembly.summary import optimizer_bytes, stage_table
from tljax.base.choosing import chosen_by
from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.processes import parts, place
from tljax.base.randomness import training_key
from tljax.base.tables import call, suggest
from tljax.checkpoints.run import RunCheckpoints
from tljax.data.episodes import Episodes
from tljax.data.streams import train_stream
from tljax.data.subsets import class_weights
from tljax.sharding import batch_sharding, replicated
from tljax.train.evaluate import collect, measure
from tljax.train.job import Job, load_trained, shapes_of
from tljax.train.loop import to_device
from tljax.train.state import State, merge


class Training(NamedTuple):
    """The step of an experiment and its arguments, placed on the mesh.

    Attributes:
      phases: of the run; the first one's step and frozen leaves stand here too.
      step: (state, frozen, batches, key) → (state, metrics), jitted, `state` donated.
      state: before the first step.
      frozen: flat dict of frozen leaves.
      key: of the whole run.
      schedule: step → learning rate.
      steps: in all.
    """

    phases: tuple[Phase, ...]
    step: Callable
    state: State
    frozen: dict[str, Any]
    key: jax.Array
    schedule: Callable
    steps: int

    def phase_of(self, state: State) -> Phase:
        """The phase to which a state belongs, by its live leaves."""
        return next(phase for phase in self.phases if phase.live == state.live.keys())


def training(experiment: Experiment) -> Training:
    """Everything that a step needs, created on the mesh; compiles nothing yet."""
    reading = experiment.reading
    steps = reading.timed(experiment.settings).total_steps(reading.records)
    phases, state, schedule = make_phases(experiment, steps)
    key = training_key(experiment.seed)
    key = put(jax.eval_shape(lambda: key) if are_shapes(state) else key, replicated(experiment.mesh))
    return Training(phases, phases[0].step, state, phases[0].frozen, key, schedule, steps)


def make_job(experiment: Experiment, parts: Training | None = None) -> Job:
    """The job that `train` runs; `parts` is its `training`, where that was made before."""
    parts = parts or training(experiment)
    settings, reading = experiment.settings, experiment.reading
    sharding = batch_sharding(experiment.mesh)
    names = [name for name in experiment.sources if name not in experiment.method.streams]
    dtype = jnp.dtype(settings.compute_dtype)

    @cache
    def predict(start: int, task: str | None):
        return predictor(at(experiment, start), task=experiment.task.parts.get(task))

    starts = {phase.start: phase for phase in parts.phases[1:]}
    survey = surveyor(experiment, parts)

    taken: Counter = Counter()

    def step(state, batches):
        phase = parts.phase_of(state)
        taken[phase.start, shapes_key(batches)] += 1
        return phase.step(state, phase.frozen, batches, parts.key)

    def before(done: int, state: State) -> State:
        return survey(done, enter(starts[done], state, experiment) if done in starts else state)

    def batches(start: int):
        return to_device(training_batches(experiment, start), sharding)

    def evaluation(name: str):
        def measured(state: State):
            phase, task = parts.phase_of(state), experiment.entries[name].task
            now, params = at(experiment, phase.start), merge(state.evaluated, phase.frozen, dtype)
            run = partial(predict(since(experiment, phase.start), task), params, state.batch_stats)
            predictions, targets, _ = collect(run, evaluation_batches(now, name), sharding)
            return measure(experiment.task_of(name), predictions, targets, now.sources[name].records)

        return measured

    last = at(experiment, parts.phases[-1].start)
    facts = facts_of(experiment)
    chooses = experiment.task_of("validation") if "validation" in names else experiment.task
    return Job(
        config=experiment.config,
        settings=settings,
        steps=parts.steps,
        interval=reading.timed(settings).evaluation_interval(reading.records),
        state=parts.state,
        step=step,
        batches=batches,
        evaluations={name: evaluation(name) for name in sorted(names, key=lambda n: n != "validation")},
        main=chosen_by(chooses.main, settings.metric),
        schedule=parts.schedule,
        digests=digests(experiment, facts.pretrained),
        facts=facts,
        summary=stage_table(experiment, parts.state.live, parts.frozen, optimizer_bytes(parts.state)),
        before=before,
        shapes=lambda done: phase_at(parts.phases, done).shapes,
        events=events(experiment, parts.phases),
        examine=examiner(last, {**parts.frozen, **parts.phases[-1].frozen}),
        flops=lambda: step_flops(parts.phases, taken, parts.key, scan=settings.scan),
    )


def events(experiment: Experiment, phases: Sequence[Phase]) -> dict[int, str]:
    """Step → what begins there, in a line."""
    found = {}
    for phase in phases[1:]:
        live = [s for s in experiment.stages if any(path.startswith(f"backbone/{s}/") for path in phase.live)]
        found[phase.start] = f"from here on {len(phase.live)} leaves train, in the head and in {', '.join(live)}"
    return found


def surveyor(experiment: Experiment, parts: Training) -> Callable[[int, State], State]:
    """(steps done, state) → state, with the method's survey of its streams made where one is due."""
    settings, mesh = experiment.settings, experiment.mesh
    if experiment.method.survey is None:
        return lambda step, state: state
    interval = math.ceil(experiment.reading.records / experiment.reading.examples)
    dtype, sharding = jnp.dtype(settings.compute_dtype), batch_sharding(mesh)

    @cache
    def reader(start: int):
        survey = at(experiment, start).method_at(0).survey

        @jax.jit
        def read(live, frozen, batch_stats, method, batch):
            state = {"batch_stats": batch_stats, "method": method}
            return survey.read(merge(live, frozen, dtype), state, batch)

        return survey, read

    def before(step: int, state: State) -> State:
        now, frozen = at(experiment, step), parts.phase_of(state).frozen
        survey, read = reader(since(experiment, step))
        if step % interval if survey.every == "epoch" else step:
            return state
        found = {}
        for name in survey.streams:
            run = partial(read, state.live, frozen, state.batch_stats, state.method)
            batches = evaluation_batches(now, name)
            if experiment.method.streams[name] == "unlabelled":
                batches = ({key: x for key, x in batch.items() if key != "targets"} for batch in batches)
            found[name], targets, _ = collect(run, batches, sharding)
            if targets is not None:
                found[name] = {**found[name], "targets": targets}
        method = survey.digest(state.method, found)
        like = lambda x, old: place(jnp.asarray(x, old.dtype), old.sharding)  # noqa: E731
        return state._replace(method=jax.tree.map(like, method, state.method))

    return before


def batch_shapes(experiment: Experiment) -> dict[str, Any]:
    """{stream: shapes of the batch} of a step, placed as the batches are; texts and sounds as long as they may be.

    One example of each stream is read, and no more; of a stream of episodes a whole batch.
    """
    sizes, sharding = experiment.reading.sizes, batch_sharding(experiment.mesh)
    fixed = {name: processor.fixed_shape() for name, processor in experiment.processors.items()}
    read = {name: size if experiment.entries[name].episodes else 1 for name, size in sizes.items()}
    batches = next(_batches(experiment._replace(processors=fixed), 0, read))
    return {
        name: jax.tree.map(
            lambda x, size=sizes[name] // read[name]: jax.ShapeDtypeStruct(
                (x.shape[0] * size, *x.shape[1:]), x.dtype, sharding=sharding
            ),
            batch,
        )
        for name, batch in batches.items()
    }


def training_batches(experiment: Experiment, start: int) -> Iterator[dict[str, Any]]:
    """{stream: batch} of each stream that the method reads, from step `start` on, on the host."""
    starts = (start, *sorted(step for step in experiment.cached if step > start))
    for begin, end in itertools.zip_longest(starts, starts[1:]):
        batches = _batches(at(experiment, begin), begin, experiment.reading.sizes)
        yield from itertools.islice(batches, None if end is None else end - begin)


def _batches(experiment: Experiment, start: int, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    streams = {name: _stream(experiment, name, start, sizes[name]) for name in experiment.method.streams}
    unlabelled = {name for name, kind in experiment.method.streams.items() if kind == "unlabelled"}
    while True:
        batches = {name: next(stream) for name, stream in streams.items()}
        for name in unlabelled:
            batches[name].pop("targets", None)
        yield batches


def _stream(experiment: Experiment, name: str, start: int, size: int) -> Iterator[dict[str, Any]]:
    """The batches, of `size` examples, of `config.data.NAME` from step `start` on."""
    entry, source = experiment.entries[name], experiment.sources[name]
    if entry.class_weights not in (None, "balanced"):
        raise UserError(
            f"config.data.{name}.class_weights is {entry.class_weights!r}. {suggest(entry.class_weights, ['balanced'])}"
        )
    return train_stream(
        source,
        experiment.processors[name],
        batch_size=size,
        seed=stream_seed(experiment.seed, name),
        start=start,
        workers=entry.workers,
        augment=entry.augment,
        versions=entry.versions,
        views={view: entry.views[view] for view in experiment.method.views.get(name, ())},
        class_weights=class_weights(source) if entry.class_weights else None,
        episodes=_episodes(experiment, name),
        group_by_length=entry.group_by_length,
        shard=parts(batch_sharding(experiment.mesh)),
    )


def _episodes(experiment: Experiment, name: str) -> Episodes | None:
    """The shape of the episodes of `config.data.NAME`, which must be the one that the method was told."""
    faults = [
        f"config.data.{other}.episodes: the method does not read {other}, and only its streams come in episodes. Those "
        "of an evaluation are the option config.task.episodes of the task few_shot."
        for other, entry in experiment.entries.items()
        if entry.episodes is not None and other not in experiment.method.streams
    ]
    options, shape = experiment.entries[name].episodes, None
    if options is not None:
        shape = call(Episodes, (), options, where=f"config.data.{name}.episodes")
        told = experiment.config.get("method") or {}
        faults += [
            f"config.method.{field} is {told[field]!r}, and config.data.{name}.episodes.{field} {value!r}."
            for field, value in shape._asdict().items()
            if told.get(field, value) != value
        ]
    raise_faults("The episodes of the config do not fit together:", faults)
    return shape


def trained_variables(
    experiment: Experiment, workdir: Path, *, say: Callable[[str], None]
) -> tuple[dict[str, Any], int] | None:
    """(variables, step): the experiment's with what the run in `workdir` trained; None where nothing was saved.

    Leaves that training did not touch keep their stored bytes.
    """
    stats = place(experiment.variables["batch_stats"], replicated(experiment.mesh))

    def wanted(step: int) -> dict[str, Any]:
        # A checkpoint holds what was live in its last step.
        live = experiment.plan.live(max(step - 1, 0)) & leaf_paths
        chosen = masters(experiment, live)
        average = chosen if experiment.plan.average is not None else {}
        return shapes_of({"live": chosen, "batch_stats": stats, "average": average})

    leaf_paths = frozenset(used_paths(experiment.variables, experiment.model.stop))
    found = load_trained(workdir, wanted, digests(experiment), say=say)
    if found is None:
        return None
    tree, step = found
    return with_leaves(experiment, {**tree["live"], **tree["average"]}, tree["batch_stats"]), step


def with_leaves(experiment: Experiment, live: Mapping[str, Any], batch_stats: Any) -> dict[str, Any]:
    """The experiment's variables with other live leaves and statistics."""
    params = unflatten({**flatten(experiment.variables["params"]), **live})
    return {**experiment.variables, "params": params, "batch_stats": batch_stats}


def save_probe(experiment: Experiment, weights: Mapping[str, Any], workdir: Path) -> None:
    """Saves fitted probe weights as the checkpoint of a run, at step 0: `predict` and `export` read it as any other."""
    live = {f"head/out/{name}": jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    checkpoints = RunCheckpoints(Path(workdir) / "checkpoints")
    try:
        state = {"live": live, "batch_stats": experiment.variables["batch_stats"]}
        checkpoints.save(0, state, {"step": 0, "digests": digests(experiment)})
    finally:
        checkpoints.close()


def summary(experiment: Experiment) -> dict[str, Any]:
    """The table of stages without an optimizer: what is live in a probe."""
    live, frozen = split_leaves(experiment)
    return stage_table(experiment, live, frozen, {})


def inspect_experiment(experiment: Experiment) -> dict[str, Any]:
    """The table of stages; FLOPs of the compiled step and of a forward pass on the same batch; what else takes room.

    A config without training data or without an optimizer (an evaluation, a probe) has a forward pass only. FLOPs of
    stages under a scan are those of the stages one by one, as they are before they are compiled.

    Returns:
      that of `stage_table`, `title`, `batch` (its size), `events`; `flops`: `forward`, `step`, and `share`, which the
      step is of one that fine-tunes everything, both as they are before they are compiled; `temporary_bytes` of the
      step on a device: activations above all; `cache`: see `tljax.assembly.caching.estimates`; `groups`: of stages that
      run under a scan.
    """
    settings, sharding = experiment.settings, batch_sharding(experiment.mesh)
    strategies = ", ".join(experiment.config.get("strategy") or ["fine_tune"])
    found = {"title": f"{experiment.model.family}, {experiment.task.name}, strategy {strategies}", "flops": {}}
    trains = all(name in experiment.sources for name in experiment.method.streams)
    if trains and experiment.config.get("optim"):
        parts = training(experiment)
        live, frozen, stats = parts.state.live, parts.frozen, parts.state.batch_stats
        batches = jax.device_put(next(training_batches(experiment, 0)), sharding)
        lowered = parts.step.lower(parts.state, frozen, batches, parts.key)
        step, full = lowered.compile(), full_step(experiment, batches, parts.key, steps=parts.steps)
        if settings.scan:
            counted = step_one_by_one(experiment, parts.phases[0].optimizer)
            lowered = counted.lower(parts.state, frozen, batches, parts.key)
        batch = batches.get("train") or next(iter(batches.values()))
        batch = batch if "inputs" in batch else {**batch, "inputs": next(iter(batch["views"].values()))}
        found["flops"]["step"] = (lowered if settings.scan else step).cost_analysis()["flops"]
        found["flops"]["share"] = lowered.cost_analysis()["flops"] / full.cost_analysis()["flops"]
        found["temporary_bytes"] = step.memory_analysis().temp_size_in_bytes
        found["cache"] = estimates(experiment)
        table = stage_table(experiment, live, frozen, optimizer_bytes(parts.state))
        found["events"] = events(experiment, parts.phases)
    else:
        live, frozen = split_leaves(experiment)
        stats = experiment.variables["batch_stats"]
        batch = jax.device_put(next(evaluation_batches(experiment, next(iter(experiment.sources)))), sharding)
        table = stage_table(experiment, live if trains else {}, frozen if trains else {**frozen, **live}, {})
    params = merge(live, frozen, jnp.dtype(settings.compute_dtype))
    ahead = predictor(one_by_one(experiment)).lower(params, stats, batch)
    found["flops"]["forward"] = (ahead if settings.scan else ahead.compile()).cost_analysis()["flops"]
    groups = (experiment.model_at(0) if "step" in found["flops"] else experiment.model).groups
    return {**found, **table, "batch": batch["weight"].shape[0], "groups": groups}
