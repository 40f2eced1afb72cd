"""What a step costs, and what it would if everything trained: from shapes and programs that are there already."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax import optim
from tljax.assembly.counting import flops
from tljax.assembly.experiment import Experiment, used_paths
from tljax.assembly.phases import Phase
from tljax.base.paths import flatten, unflatten
from tljax.base.tables import call
from tljax.models.forward import init_variables
from tljax.strategies.compose import compose
from tljax.train.state import cast, first_state
from tljax.train.step import make_step


def full_step(experiment: Experiment, batches: Mapping[str, Any], key: jax.Array, *, steps: int) -> jax.stages.Lowered:
    """The step of fine-tuning the whole model on the same batches: no adapters, no kernels in few bits, all rates 1.

    Args:
      experiment: whose model, method, optimizer and settings it has.
      batches: of a step.
      key: of the run.
      steps: of the run.
    """
    settings, plain = experiment.settings, _plain(experiment)
    masters = {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in plain.items() if not p.startswith("teacher/")}
    dtype = jnp.dtype(settings.compute_dtype)
    others = {path: leaf for path, leaf in plain.items() if path not in masters}
    frozen = jax.eval_shape(lambda leaves: {path: cast(leaf, dtype) for path, leaf in leaves.items()}, others)
    variables = {**experiment.variables, "params": unflatten(plain)}
    whole = one_by_one(experiment)._replace(plan=compose({}, tuple(masters)), variables=variables)
    begun = dict.fromkeys(masters, 0)
    optimizer, _ = call(
        optim.make_optimizer, (masters, steps, {}, begun, 0), experiment.config.get("optim"), where="config.optim"
    )
    method = whole.method_at(0)
    counts = {name: len(experiment.sources[name].records) for name in method.streams}

    def first(live):
        state = method.start(experiment.method_state, live, counts)
        return first_state(live, optimizer, batch_stats=experiment.variables["batch_stats"], method=state)

    step = make_step(method, optimizer, compute_dtype=dtype, accumulate=settings.accumulate)
    return jax.jit(step).lower(jax.eval_shape(first, masters), frozen, batches, key)


def shapes_key(batches: Any) -> tuple[Any, tuple]:
    """What tells compiled steps apart: the structure of their batches, and shapes, dtypes and shardings."""
    leaves, structure = jax.tree.flatten(batches)
    return structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves)


def step_flops(phases: Sequence[Phase], taken: Counter, key: jax.Array, *, scan: bool) -> float | None:
    """FLOPs of a step on all devices, in the mean of those that were taken; their programs are compiled already.

    XLA counts them, for one device; under a scan, whose body it sees once, they are counted in the traced step.

    Args:
      phases: of the run.
      taken: (start of the phase, `shapes_key` of the batches) → number of steps.
      key: of the run.
      scan: whether stages run under a scan.

    Returns:
      None where no step was taken, or XLA does not count.
    """
    total = 0.0
    for (start, (structure, leaves)), count in taken.items():
        phase = next(phase for phase in phases if phase.start == start)
        arguments = (phase.shapes, phase.frozen, structure.unflatten(leaves), key)
        if scan:
            found = flops(phase.step.trace(*arguments).jaxpr)
        else:
            # What was called with these shapes is neither traced nor compiled again.
            found = (phase.step.lower(*arguments).compile().cost_analysis() or {}).get("flops")
            if found is None:
                return None
            found *= key.sharding.num_devices
        total += count * found
    return total / taken.total() if taken else None


def one_by_one(experiment: Experiment) -> Experiment:
    """The experiment without scans over stages, whose body XLA's count sees once, for however many it stands."""
    settings, model = experiment.settings._replace(scan=False), experiment.model._replace(groups=())
    return experiment._replace(settings=settings, model=model)


def step_one_by_one(experiment: Experiment, optimizer: optax.GradientTransformation) -> Any:
    """The jitted step of the experiment, with the arguments of its own, but without scans over stages."""
    settings, plan = experiment.settings, experiment.plan
    step = make_step(
        one_by_one(experiment).method_at(0),
        optimizer,
        compute_dtype=jnp.dtype(settings.compute_dtype),
        accumulate=settings.accumulate,
        pull=plan.pull,
        mixed=plan.mixed,
        average=plan.average,
        skip=settings.nonfinite == "skip",
    )
    return jax.jit(step)


def _plain(experiment: Experiment) -> dict[str, Any]:
    """Shapes by path: the backbone as its initialisers make it, the other wings as they are."""
    made = jax.eval_shape(lambda: init_variables(experiment.model._replace(head=None), jax.random.key(0)))
    params = {**experiment.variables["params"], "backbone": made["params"]["backbone"]}
    flat = flatten(params)
    kept = used_paths({"params": params}, experiment.model.stop)
    return {path: jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype) for path in kept}
