"""The training step: differentiate the live leaves only, add up parts, divide once, update."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax.base.types import Method
from tljax.train.state import State, merge

Batches = Mapping[str, Any]
COMBINE, MIX = 1, 2
"""What the key of a step is folded with where gradients are combined, and where leaves are mixed with their start."""
START = "start/"
"""Before the path of a leaf: its first value."""
KEEP_BARRIERS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}
"""Platform → options of the compiler for programs that compute parts of the forward pass again, for want of memory.

Without them XLA drops the barriers between the two passes on CPU, finds that they are equal, and computes once what it
then keeps.
"""


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    compute_dtype: Any,
    accumulate: int = 1,
    parts: Any = None,
    pull: Mapping[str, float] | None = None,
    mixed: Mapping[str, float] | None = None,
    average: float | None = None,
    skip: bool = False,
) -> Callable[[State, dict, Batches, jax.Array], tuple[State, dict]]:
    """`step(state, frozen, batches, key) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
      method: the objective.
      optimizer: transformation over the flat dict of live leaves.
      compute_dtype: dtype of the forward and backward pass.
      accumulate: parts that each batch is cut into along its first axis.
      parts: sharding of arrays (parts, examples, …). Without one the compiler leaves each part on the devices where its
        examples were, 1 / `accumulate` of them, and the others repeat their work.
      pull, mixed, average: those of a `Plan`. The first values of the leaves that `pull` and `mixed` name stand in
        `frozen`, under `start/`.
      skip: a step whose loss or gradient is not finite changes nothing but its number, and is counted in
        `State.skipped`.

    The key is folded with the step, so that randomness is a function of seed and step. Losses are divided by their
    weight over the whole batch, so one part or several give the same gradient.
    """
    one_pass = method.combine is None
    gradients = _gradients if accumulate == 1 else partial(_gradients_in_parts, count=accumulate, where=parts)

    def step(state: State, frozen: dict, batches: Batches, key: jax.Array) -> tuple[State, dict]:
        key = step_key = jax.random.fold_in(key, state.step)

        def loss(live, model_state, batches, key):
            live = mix_leaves(live, frozen, mixed or {}, jax.random.fold_in(step_key, MIX))
            return method.loss(merge(live, frozen, compute_dtype), model_state, batches, key, state.step)

        model_state = {"batch_stats": state.batch_stats, "method": state.method}
        grads, losses, model_state, metrics = gradients(loss, state.live, model_state, batches, key, one_pass=one_pass)
        if method.combine is not None:
            grads, found = method.combine(grads, jax.random.fold_in(key, COMBINE))
            metrics = {**metrics, **found}
        grads = {
            path: grad + pull[path] * (state.live[path] - frozen[START + path]) if path in (pull or {}) else grad
            for path, grad in grads.items()
        }
        updates, opt_state = optimizer.update(grads, state.optimizer, state.live)
        live, done = optax.apply_updates(state.live, updates), state.step + 1
        renewed = State(
            step=done,
            live=live,
            batch_stats=model_state["batch_stats"],
            method=method.after_step(model_state["method"], live, done),
            optimizer=opt_state,
            average=_averaged(state, live, average),
            skipped=state.skipped,
        )
        report = {"loss": sum(losses.values()), "losses": losses, "metrics": metrics}
        report["gradient_norm"] = optax.tree.norm(grads)
        if skip:
            renewed = _unless_finite(renewed, state, jnp.isfinite(report["loss"] + report["gradient_norm"]))
            report["skipped"] = renewed.skipped
        return renewed, report

    return step


def _unless_finite(renewed: State, state: State, finite: jax.Array) -> State:
    """`renewed` where the step was finite; else `state`, one step on and the step counted."""
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), renewed, state)
    bad = 1 - finite.astype(jnp.int32)
    counts = {"total": state.skipped["total"] + bad, "in_a_row": (state.skipped["in_a_row"] + 1) * bad}
    return kept._replace(step=renewed.step, skipped=counts)


def mix_leaves(
    live: Mapping[str, Any], frozen: Mapping[str, Any], chances: Mapping[str, float], key: Any
) -> dict[str, Any]:
    """The leaves, those that have a chance mixed with their first values; their mean over the draws is the leaf."""
    found = dict(live)
    for path in sorted(live.keys() & chances.keys()):  # the same program in every process
        chance, start = chances[path], frozen[START + path]
        first = jax.random.bernoulli(jax.random.fold_in(key, zlib.crc32(path.encode())), chance, start.shape)
        found[path] = (jnp.where(first, start, live[path]) - chance * start) / (1 - chance)
    return found


def _averaged(state: State, live: Mapping[str, Any], decay: float | None) -> dict[str, Any]:
    """The moving average of the live leaves after a step; {} without one."""
    if decay is None:
        return {}
    steps = (state.step + 1).astype(jnp.float32)
    keep = jnp.minimum(decay, steps / (steps + 1))
    return {path: keep * old + (1 - keep) * live[path] for path, old in state.average.items()}


def _gradients(loss, live, model_state, batches, key, *, one_pass, weights=None):
    """(gradients, value of each loss, new model state, metrics) of a batch.

    Args:
      loss: (live, model state, batches, key) → (named losses, model state, metrics).
      live, model_state, batches, key: its arguments.
      one_pass: one gradient of the sum of all losses; otherwise a dict with one for each loss.
      weights: what each loss is divided by; None is its own weight.
    """

    def values(live):
        losses, renewed, metrics = loss(live, model_state, batches, key)
        total = _weights(losses) if weights is None else weights
        shares = {name: entry.sum / jnp.maximum(total[name], 1e-9) for name, entry in losses.items()}
        return shares, (renewed, metrics)

    def summed(live):
        shares, more = values(live)
        return sum(shares.values()), (shares, more)

    if one_pass:
        (_, (shares, (renewed, metrics))), grads = jax.value_and_grad(summed, has_aux=True)(live)
    else:
        # One forward pass. Each loss is transposed alone, so that its backward pass is no longer than its own part.
        shares, tangents, (renewed, metrics) = jax.linearize(values, live, has_aux=True)
        grads = {name: _transposed(tangents, name, live)(jnp.ones_like(value))[0] for name, value in shares.items()}
    return grads, shares, renewed, metrics


def _gradients_in_parts(loss, live, model_state, batches, key, *, one_pass, count, where=None):
    """As `_gradients`, from `count` parts of the batch, one after another; `where` is the sharding of the parts."""
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), dict(batches))
    parts = parts if where is None else jax.lax.with_sharding_constraint(parts, where)
    keys = jax.random.split(key, count)
    # Of this pass only the weights are used, so the compiler drops the rest of it.
    weights = jax.lax.map(lambda part_key: _weights(loss(live, model_state, *part_key)[0]), (parts, keys))
    gradients = partial(_gradients, loss, live, one_pass=one_pass, weights=jax.tree.map(lambda x: x.sum(0), weights))

    def body(carry, part_key):
        model_state, grads, losses = carry
        more, shares, model_state, metrics = gradients(model_state, *part_key)
        return (model_state, jax.tree.map(jnp.add, grads, more), jax.tree.map(jnp.add, losses, shares)), metrics

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradients, model_state, first, keys[0])[:2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (model_state, grads, losses), metrics = jax.lax.scan(body, (model_state, *zeros), (parts, keys))
    return grads, losses, model_state, jax.tree.map(lambda x: x.mean(0), metrics)


def _weights(losses: Mapping[str, Any]) -> dict[str, Any]:
    return {name: jax.lax.stop_gradient(entry.weight) for name, entry in losses.items()}


def _transposed(tangents: Callable, name: str, live: Any) -> Callable:
    return jax.linear_transpose(lambda change: tangents(change)[name], live)
