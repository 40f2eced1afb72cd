"""The phases of a run: from one to the next more leaves become live, and what was live goes on as it is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tljax import optim
from tljax.assembly.experiment import Experiment, used_paths
from tljax.assembly.running import compiler_options, put_leaves
from tljax.assembly.shapes import made, put
from tljax.base.paths import flatten
from tljax.base.processes import place
from tljax.base.tables import call
from tljax.sharding import parts_sharding, replicated
from tljax.train.state import State, first_state
from tljax.train.step import START, make_step


class Phase(NamedTuple):
    """A part of a run in which the same leaves are live.

    Attributes:
      start: steps done when it begins.
      live: the live paths.
      frozen: flat dict of the other leaves, in the compute dtype, placed.
      optimizer: over the live leaves.
      step: (state, frozen, batches, key) → (state, metrics), jitted, `state` donated.
      shapes: of its state: shapes, dtypes and shardings.
    """

    start: int
    live: frozenset[str]
    frozen: dict[str, Any]
    optimizer: optax.GradientTransformation
    step: Callable
    shapes: State


def since(experiment: Experiment, done: int) -> int:
    """The step from which the stage cache is read that is in use after `done` steps; 0 without caches."""
    return max((start for start in experiment.cached if start <= done), default=0)


def at(experiment: Experiment, done: int) -> Experiment:
    """The experiment as it is trained after `done` steps: itself, or the one that reads the stage cache of the time."""
    return experiment.cached.get(since(experiment, done), experiment)


def starts_of(experiment: Experiment, steps: int) -> tuple[int, ...]:
    """The steps at which the phases of a run of `steps` steps begin."""
    return (0, *(step for step in experiment.plan.changes if step < steps))


def make_phases(experiment: Experiment, steps: int) -> tuple[tuple[Phase, ...], State, Callable[[Any], Any]]:
    """(phases of a run of `steps` steps, state before the first one, step → learning rate); compiles nothing yet."""
    plan, starts = experiment.plan, starts_of(experiment, steps)
    live, frozen = split_leaves(experiment)
    ever = {**live, **masters(experiment, plan.live(starts[-1]) - live.keys())}
    joined = {path: next(start for start in starts if path in plan.live(start)) for path in ever}
    counts = {name: len(experiment.sources[name].records) for name in experiment.method.streams}

    def started(state, live):
        # A step donates its state, and a donated buffer has one owner: a teacher's copy must be one.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), experiment.method.start(state, live, counts))

    begun = made(started, experiment.method_state, ever)
    begin = {
        "batch_stats": experiment.variables["batch_stats"],
        "method": begun,
        "average": plan.average is not None,
        "skip": experiment.settings.nonfinite == "skip",
    }
    leaves = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for path, x in ever.items()}
    anchored = ever.keys() & {*plan.pull, *plan.mixed}
    frozen |= {START + path: leaf for path, leaf in masters(experiment, anchored).items()}
    phases = []
    for start in starts:
        optimizer, schedule = call(
            optim.make_optimizer,
            (leaves, steps, plan.rates, joined, start),
            experiment.config.get("optim"),
            where="config.optim",
        )
        phases.append(_phase(experiment, start, optimizer, leaves, frozen, begin))
    state = _first(_in_shards(phases[0]), live, begin)
    return tuple(phases), put(state, jax.tree.map(lambda x: x.sharding, phases[0].shapes)), schedule


def _first(optimizer: optax.GradientTransformation, live: Mapping[str, Any], begin: Mapping[str, Any]) -> State:
    """The state before the first step of these masters; `begin` are the arguments of `first_state`."""
    begin = dict(begin)
    flags = {name: begin.pop(name) for name in ("average", "skip")}
    return made(lambda live, begin: first_state(live, optimizer, **flags, **begin), dict(live), begin)


def _phase(
    experiment: Experiment,
    start: int,
    optimizer: optax.GradientTransformation,
    leaves: Mapping[str, Any],
    frozen: Mapping[str, Any],
    begin: Mapping[str, Any],
) -> Phase:
    live, settings = experiment.plan.live(start) & frozenset(leaves), experiment.settings
    now = at(experiment, start)
    mine = {path: leaves[path] for path in live}
    shapes = _first(optimizer, mine, begin)
    placed = jax.tree_util.tree_map_with_path(
        lambda keys, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(keys, x, leaves, experiment.mesh)),
        shapes,
    )
    step = make_step(
        now.method_at(start),
        optimizer,
        compute_dtype=jnp.dtype(settings.compute_dtype),
        accumulate=settings.accumulate,
        parts=None if experiment.mesh.size == 1 else parts_sharding(experiment.mesh),
        pull=experiment.plan.pull,
        mixed=experiment.plan.mixed,
        average=experiment.plan.average,
        skip=settings.nonfinite == "skip",
    )
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, placed), None),
        compiler_options=compiler_options(experiment),
    )
    return Phase(
        start=start,
        live=live,
        frozen={path: leaf for path, leaf in {**frozen, **_carried(now)}.items() if path not in live},
        optimizer=optimizer,
        step=jitted,
        shapes=placed,
    )


def _sharding(keys: tuple, leaf: Any, leaves: Mapping[str, Any], mesh: Any) -> Any:
    """Where a part of the state lies: with the live leaf that it is kept for, if it has its shape; else everywhere."""
    names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey) and key.key in leaves]
    if names and leaves[names[-1]].shape == leaf.shape:
        return leaves[names[-1]].sharding
    return replicated(mesh)


def enter(phase: Phase, state: State, experiment: Experiment) -> State:
    """The state at the start of `phase` from that at the end of the one before.

    What the optimizer knows of a leaf that was live stays; leaves that become live start from the experiment's values.
    """
    live = {**state.live, **masters(experiment, phase.live - state.live.keys())}
    optimizer = optim.carried(_in_shards(phase).init(live), state.optimizer)
    average = {path: state.average.get(path, leaf + 0.0) for path, leaf in live.items()} if state.average else {}
    entered = state._replace(live=live, optimizer=optimizer, average=average)
    return jax.tree.map(lambda x, like: place(x, like.sharding), entered, phase.shapes)


def _in_shards(phase: Phase) -> optax.GradientTransformation:
    """The optimizer, whose first state is made in the shards in which it stays."""
    where = jax.tree.map(lambda x: x.sharding, phase.shapes.optimizer)
    if all(sharding.num_devices == 1 for sharding in jax.tree.leaves(where)):
        return phase.optimizer  # there are none, and a program less to compile
    return phase.optimizer._replace(init=jax.jit(phase.optimizer.init, out_shardings=where))


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase to which a state of `step` steps done belongs before the next step is taken: that of its last step."""
    return [phase for phase in phases if phase.start < max(step, 1)][-1]


def split_leaves(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """(float32 masters of the leaves that are live at the start, frozen leaves) of those that run, placed."""
    leaves, live = _leaves(experiment), experiment.plan.live(0)
    frozen = {path: leaf for path, leaf in leaves.items() if path not in live}
    return masters(experiment, leaves.keys() - frozen.keys()), put_leaves(experiment, frozen, frozen=True)


def masters(experiment: Experiment, paths: Iterable[str]) -> dict[str, Any]:
    """Float32 copies of leaves with the experiment's values, placed; nobody else owns them, for a step donates them."""
    paths = frozenset(paths)
    return put_leaves(experiment, {path: leaf for path, leaf in _leaves(experiment).items() if path in paths})


def _carried(experiment: Experiment) -> dict[str, Any]:
    """What a stage cache holds once for all examples, placed."""
    flat = flatten(experiment.variables["params"])
    return put_leaves(experiment, {path: x for path, x in flat.items() if path.startswith("carried/")}, frozen=True)


def _leaves(experiment: Experiment) -> dict[str, Any]:
    """The leaves of the stages that run."""
    used = set(used_paths(experiment.variables, experiment.model.stop))
    return {path: leaf for path, leaf in flatten(experiment.variables["params"]).items() if path in used}
