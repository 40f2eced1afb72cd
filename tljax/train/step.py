"""The training step: differentiate the live leaves only, add up parts, divide once, update."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax.base.types import Method
from tljax.train.state import State, merge

Batches = Mapping[str, Any]


def make_step(
    method: Method, optimizer: optax.GradientTransformation, *, compute_dtype: Any, accumulate: int = 1
) -> Callable[[State, dict, Batches, jax.Array], tuple[State, dict]]:
    """`step(state, frozen, batches, key) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
      method: the objective.
      optimizer: transformation over the flat dict of live leaves.
      compute_dtype: dtype of the forward and backward pass.
      accumulate: parts that each batch is cut into along its first axis.

    The key is folded with the step, so that randomness is a function of seed and step. Losses are divided by their
    weight over the whole batch, so one part or several give the same gradient.
    """

    def evaluate(live, frozen, model_state, part, key, step):
        params = merge(live, frozen, compute_dtype)
        return method.loss(params, model_state, part, key, step)

    def gradient(live, frozen, model_state, part, key, step, weights):
        """(gradients, value of each loss, new model state, metrics) of one part."""

        def values(live):
            losses, new, metrics = evaluate(live, frozen, model_state, part, key, step)
            total = weights or {name: jax.lax.stop_gradient(loss.weight) for name, loss in losses.items()}
            shares = {name: loss.sum / jnp.maximum(total[name], 1e-9) for name, loss in losses.items()}
            return shares, (new, metrics)

        if method.combine is None:
            (_, (shares, new, metrics)), grads = jax.value_and_grad(_summed(values), has_aux=True)(live)
        else:
            shares, pull, (new, metrics) = jax.vjp(values, live, has_aux=True)
            grads = {name: pull(_one_hot(shares, name))[0] for name in shares}
        return grads, shares, new, metrics

    def step(state: State, frozen: dict, batches: Batches, key: jax.Array) -> tuple[State, dict]:
        key = jax.random.fold_in(key, state.step)
        model_state = {"batch_stats": state.batch_stats, "method": state.method}
        if accumulate == 1:
            grads, losses, model_state, metrics = gradient(
                state.live, frozen, model_state, batches, key, state.step, None
            )
        else:
            grads, losses, model_state, metrics = accumulated(state, frozen, model_state, batches, key)
        if method.combine is not None:
            grads = method.combine(grads)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.live)
        live = optax.apply_updates(state.live, updates)
        params = merge(live, frozen, compute_dtype)
        new = State(
            step=state.step + 1,
            live=live,
            batch_stats=model_state["batch_stats"],
            method=method.after_step(model_state["method"], params),
            optimizer=opt_state,
        )
        report = {"loss": sum(losses.values()), "losses": losses, "metrics": metrics}
        return new, {**report, "gradient_norm": optax.tree.norm(grads)}

    def accumulated(state, frozen, model_state, batches, key):
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), dict(batches))
        keys = jax.random.split(key, accumulate)

        def weigh(part, key):
            losses, _, _ = evaluate(state.live, frozen, model_state, part, key, state.step)
            return {name: jax.lax.stop_gradient(loss.weight) for name, loss in losses.items()}

        # Only the weights are used here, so the compiler drops the rest of this pass.
        weights = jax.tree.map(lambda x: x.sum(0), jax.lax.map(lambda pk: weigh(*pk), (parts, keys)))

        def body(carry, part_key):
            model_state, grads, losses = carry
            more, shares, model_state, metrics = gradient(
                state.live, frozen, model_state, *part_key, state.step, weights
            )
            carry = (model_state, jax.tree.map(jnp.add, grads, more), jax.tree.map(jnp.add, losses, shares))
            return carry, metrics

        first = (jax.tree.map(lambda x: x[0], parts), keys[0])
        shapes = jax.eval_shape(lambda p: gradient(state.live, frozen, model_state, *p, state.step, weights), first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
        (model_state, grads, losses), metrics = jax.lax.scan(body, (model_state, *zeros), (parts, keys))
        return grads, losses, model_state, jax.tree.map(lambda x: x.mean(0), metrics)

    return step


def _summed(values: Callable) -> Callable:
    def total(live):
        shares, (new, metrics) = values(live)
        return sum(shares.values()), (shares, new, metrics)

    return total


def _one_hot(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: jnp.ones_like(value) if key == name else jnp.zeros_like(value) for key, value in tree.items()}
