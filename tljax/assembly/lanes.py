"""Linear probes over stored features that differ in seed, learning rate and decay, as one program: a lane each."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax import optim
from tljax.assembly.caching import with_cache
from tljax.assembly.experiment import Experiment, build
from tljax.assembly.phases import at
from tljax.assembly.training import Training, make_job, training, training_batches
from tljax.base.configs import VARIED, shared
from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten
from tljax.base.tables import call
from tljax.models.forward import HEAD
from tljax.train.job import Job
from tljax.train.loop import to_device
from tljax.train.step import make_step


class Lanes(NamedTuple):
    """Jobs that `tljax.train.together.train_together` runs, with its arguments."""

    jobs: list[Job]
    step: Callable
    batches: Iterator[Any]


def lanes_of(configs: Sequence[Mapping[str, Any]], *, data_dir: str | None = None, say: Callable[[str], None]) -> Lanes:
    """The lanes of resolved configs, whose strategy is a linear probe and whose stages below the head are cached.

    A lane computes what its run would compute by itself, within rounding: the same start, batches, schedule and
    optimizer, as functions of its seed and rate.

    Raises:
      UserError: the configs differ in more than `VARIED`, or their runs are no probes over stored features.
    """
    if len({json.dumps(shared(config), sort_keys=True) for config in configs}) > 1:
        raise UserError(f"Runs that are trained together may differ in {', '.join(VARIED)} alone.")
    by_seed: dict[int, Experiment] = {}
    for config in configs:
        if (seed := int(config.get("seed", 0))) not in by_seed:
            by_seed[seed] = _experiment(config, data_dir, say if not by_seed else lambda line: None)
    experiments = [_with_config(by_seed[int(config.get("seed", 0))], config) for config in configs]
    first = experiments[0]
    raise_faults("These runs cannot be trained together:", _faults(experiments))
    parts = [training(first)]
    parts += [_shared_frozen(training(each), parts[0]) for each in experiments[1:]]
    jobs = [make_job(*pair) for pair in zip(experiments, parts, strict=True)]
    if len({job.steps for job in jobs}) > 1:
        raise UserError("These runs cannot be trained together: by their seeds they have different numbers of steps.")
    streams = {seed: training_batches(each, 0) for seed, each in by_seed.items()}
    return Lanes(jobs, _step(experiments, parts), _batches(streams, [each.seed for each in experiments]))


def _experiment(config: Mapping[str, Any], data_dir: str | None, say: Callable[[str], None]) -> Experiment:
    return with_cache(build(config, data_dir=data_dir), say=say)


def _with_config(experiment: Experiment, config: Mapping[str, Any]) -> Experiment:
    cached = {start: view._replace(config=dict(config)) for start, view in experiment.cached.items()}
    return experiment._replace(config=dict(config), cached=cached)


def _faults(experiments: Sequence[Experiment]) -> Iterator[str]:
    first = experiments[0]
    plan, now = first.plan, at(first, 0)
    if (first.config.get("method") or {}).get("name", "supervised") != "supervised":
        yield "their method is not the supervised one."
    if now.model.start != HEAD:
        yield "what goes into the head is not stored: config.train.cache must be 'auto' or a folder, and be possible."
    if plan.changes or plan.pull or plan.mixed or not all(path.startswith("head/") for path in plan.live(0)):
        yield "more than the head trains, or is pulled; the strategy must be linear_probe alone."
    if first.mesh.size > 1:
        yield "the mesh has several devices."
    leaves = flatten(first.variables["params"]["backbone"])
    for other in {each.seed: each for each in experiments[1:]}.values():
        mine = flatten(other.variables["params"]["backbone"])
        if any(mine[path] is not leaf and not np.array_equal(mine[path], leaf) for path, leaf in leaves.items()):
            yield f"with the seed {other.seed} the backbone begins with other values."


def _shared_frozen(mine: Training, first: Training) -> Training:
    """`mine` with the frozen leaves of the first lane, which are equal: they lie in memory once."""
    phases = tuple(phase._replace(frozen=first.frozen) for phase in mine.phases)
    return mine._replace(phases=phases, frozen=first.frozen)


def _step(experiments: Sequence[Experiment], parts: Sequence[Training]) -> Callable:
    """(states, batches) → (states, metrics) of all lanes."""
    first, settings = experiments[0], experiments[0].settings
    section = first.config["optim"]
    varied = [name.removeprefix("optim.") for name in VARIED if name.startswith("optim.")]
    given = {name: [each.config["optim"].get(name, 0.0) for each in experiments] for name in varied}
    # What is equal stays a number of the program: weights that never decay keep an optimizer without decay.
    numbers = {name: jnp.asarray(values, jnp.float32) for name, values in given.items() if len({*values}) > 1}
    method = at(first, 0).method_at(0)

    def lane(state, frozen, batches, key, numbers):
        optimizer, _ = call(
            optim.make_optimizer,
            (state.live, parts[0].steps, first.plan.rates),
            {**section, **numbers},
            where="config.optim",
        )
        step = make_step(
            method,
            optimizer,
            compute_dtype=jnp.dtype(settings.compute_dtype),
            accumulate=settings.accumulate,
            average=first.plan.average,
            skip=settings.nonfinite == "skip",
        )
        return step(state, frozen, batches, key)

    keys = jnp.stack([each.key for each in parts])
    compiled = jax.jit(jax.vmap(lane, in_axes=(0, None, 0, 0, 0)), donate_argnums=0)
    frozen = parts[0].frozen
    return lambda states, batches: compiled(states, frozen, batches, keys, numbers)


def _batches(streams: Mapping[int, Iterator[Any]], seeds: Sequence[int]) -> Iterator[Any]:
    """The batches of all lanes on the device, (lanes, examples, …): lanes of one seed read the same ones."""

    def stacked() -> Iterator[Any]:
        while True:
            found = {seed: next(stream) for seed, stream in streams.items()}
            yield jax.tree.map(lambda *rows: np.stack(rows), *(found[seed] for seed in seeds))

    return to_device(stacked(), jax.devices()[0])
