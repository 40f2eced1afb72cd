"""Many linear heads at once: settings that differ in rate, decay, seed or labels share one pass over the features."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.base.errors import raise_faults

BETAS = (0.9, 0.999)
"""Of Adam (Kingma and Ba 2015), which every head has of its own; its ε is 1e-8."""
BLOCK = 2**21
"""Bytes of the kernels that train at a time on a CPU: with Adam's memory and the gradient they stay in its caches."""


class Heads(NamedTuple):
    """A grid of heads; every combination of its tuples is trained.

    Attributes:
      learning_rates: highest values of a cosine.
      decays: AdamW's weight decay.
      seeds: of a head's start (deviation 0.02) and of its draw of labels.
      shots: labels a class; None is all of them.
      steps: of each.
      batch_size: examples a step, the same ones for all heads; None is all examples.
    """

    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2)
    decays: Sequence[float] = (0.0,)
    seeds: Sequence[int] = (0,)
    shots: Sequence[int | None] = (None,)
    steps: int = 500
    batch_size: int | None = 256

    def check(self) -> "Heads":
        """Self; raises `UserError` for what makes no sense."""
        faults = []
        for name in ("learning_rates", "decays", "seeds", "shots"):
            if isinstance(getattr(self, name), (int, float, str)) or not len(getattr(self, name)):
                faults.append(
                    f"{name} is {getattr(self, name)!r}; it must be several values: ({getattr(self, name)!r},)."
                )
        if not isinstance(self.steps, int) or self.steps < 1:
            faults.append(f"steps is {self.steps!r}; it must be a whole number from 1.")
        raise_faults("The section config.probe.heads cannot be used:", faults)
        return self


def train_heads(
    grid: Heads, features: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0
) -> list[tuple[str, dict[str, Any], dict[str, float]]]:
    """Trains every head of the grid, all in one compiled loop.

    Args:
      grid: the settings.
      features: (examples, D), float32.
      labels: (examples,), integers below `classes`.
      classes: Y.
      seed: of the order of the data.

    Returns:
      (name, {"kernel": (D, Y), "bias": (Y,)}, {"loss": mean over the last step}) of each, in the order of the grid.
    """
    grid = grid.check()
    axes = {"rate": grid.learning_rates, "decay": grid.decays, "seed": grid.seeds, "shots": grid.shots}
    settings = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    size = min(grid.batch_size or len(labels), len(labels))
    keys = jnp.stack([jax.random.key_data(jax.random.key(setting["seed"])) for setting in settings])
    numbers = {name: jnp.asarray([setting[name] for setting in settings], jnp.float32) for name in ("rate", "decay")}
    chosen = jnp.asarray(np.stack([drawn(labels, setting["shots"], setting["seed"]) for setting in settings]))
    order = jnp.asarray(orders(len(labels), size, grid.steps, seed))
    weights, losses = _train(
        numbers, keys, chosen, jnp.asarray(features, jnp.float32), jnp.asarray(labels), order, classes
    )
    varied = [name for name, values in axes.items() if len(values) > 1] or ["rate"]
    return [
        (
            ", ".join(f"{name} {'all' if setting[name] is None else format(setting[name], 'g')}" for name in varied),
            jax.tree.map(lambda x, i=i: x[i], weights),
            {"loss": float(losses[i])},
        )
        for i, setting in enumerate(settings)
    ]


def drawn(labels: np.ndarray, shots: int | None, seed: int) -> np.ndarray:
    """1 for each example whose label is used, (examples,), float32; `shots` of each class."""
    if shots is None:
        return np.ones(len(labels), np.float32)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    rows = np.concatenate([order[labels[order] == y][:shots] for y in np.unique(labels)])
    return np.isin(np.arange(len(labels)), rows).astype(np.float32)


def orders(count: int, size: int, steps: int, seed: int) -> np.ndarray:
    """The examples of each step, (steps, size): whole passes, each shuffled anew."""
    generator = np.random.Generator(np.random.PCG64(seed))
    passes = -(-steps * size // count)
    return np.concatenate([generator.permutation(count) for _ in range(passes)])[: steps * size].reshape(steps, size)


@partial(jax.jit, static_argnames="classes")
def _train(numbers, keys, chosen, features, labels, order, classes):
    """({"kernel": (S, D, Y), "bias": (S, Y)}, losses of the last step (S,)) of S heads."""
    count, each = len(keys), features.shape[1] * classes * features.dtype.itemsize
    at_once = max(1, BLOCK // each) if jax.default_backend() == "cpu" else count
    blocks = -(-count // at_once)
    if blocks == 1:
        return _train_block(numbers, keys, chosen, features, labels, order, classes)
    # Blocks of one size, the last one filled up with heads that are thrown away.
    rows = np.resize(np.arange(count), (blocks, -(-count // blocks)))
    heads = jax.tree.map(lambda x: x[rows], (numbers, keys, chosen))
    found = jax.lax.map(lambda block: _train_block(*block, features, labels, order, classes), heads)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


def _train_block(numbers, keys, chosen, features, labels, order, classes):
    """Inside, heads and classes are the rows of one matrix (S · Y, D): what differs by head is constant along a row."""
    total, width, heads = order.shape[0], features.shape[1], len(keys)
    normal = lambda key: jax.random.normal(jax.random.wrap_key_data(key), (width, classes)).T  # noqa: E731
    weights = {"kernel": 0.02 * jax.vmap(normal)(keys), "bias": jnp.zeros((heads, classes, 1))}
    by_head = lambda x: x[:, None, None]  # noqa: E731
    pulled = {"kernel": by_head(numbers["decay"]), "bias": 0.0}

    def objective(logits, y, mask):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(y[:, None], logits.shape[:2]))
        each = jnp.sum(losses * mask, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1.0)
        return jnp.sum(each), each

    def body(carry, rows_step):
        (weights, first, second, count), (rows, step) = carry, rows_step
        mask, x = chosen[:, rows].T, features[rows]
        logits = (x @ weights["kernel"].reshape(-1, width).T).reshape(-1, heads, classes) + weights["bias"][..., 0]
        (_, losses), slopes = jax.value_and_grad(objective, has_aux=True)(logits, labels[rows], mask)
        # The product with a transposed copy: XLA is slower with one over the first axes of both.
        turned = jax.lax.optimization_barrier(slopes.reshape(len(rows), -1).T)
        grads = {"kernel": (turned @ x).reshape(heads, classes, width), "bias": jnp.sum(slopes, 0)[..., None]}
        # A batch without a label of this head's teaches it nothing: not even Adam's memory moves it.
        keep = jnp.sum(mask, axis=0) > 0
        count = count + keep
        rate = by_head(numbers["rate"] * 0.5 * (1 + jnp.cos(jnp.pi * step / total)) * keep)
        old, new = ([by_head(jnp.where(keep, x, y)) for x, y in pairs] for pairs in (_OLD, _NEW))
        first = jax.tree.map(lambda m, g: old[0] * m + new[0] * g, first, grads)
        second = jax.tree.map(lambda v, g: old[1] * v + new[1] * (g * g), second, grads)
        scales = [by_head(1 / (1 - beta ** jnp.maximum(count, 1))) for beta in BETAS]

        def moved(w, m, v, decay):
            return w - rate * (m * scales[0] / (jnp.sqrt(v * scales[1]) + 1e-8) + decay * w)

        return (jax.tree.map(moved, weights, first, second, pulled), first, second, count), losses

    zeros = jax.tree.map(jnp.zeros_like, weights)
    start = (weights, zeros, zeros, jnp.zeros(heads))
    (weights, *_), losses = jax.lax.scan(body, start, (order, jnp.arange(total)))
    return {"kernel": jnp.moveaxis(weights["kernel"], 1, 2), "bias": weights["bias"][..., 0]}, losses[-1]


_OLD, _NEW = tuple((beta, 1.0) for beta in BETAS), tuple((1 - beta, 0.0) for beta in BETAS)
"""Weights of Adam's memory and of the new gradient, (where a head has labels in the batch, where it has none)."""
