"""Batch spectral shrinkage. Chen, Wang, Fu, Long and Wang 2019, NeurIPS. Axes: B batch, D width of the features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import example_features, feature_width, negative_faults, supervised_loss


def bss(forward: Callable[..., tuple[Any, Any]], task: Task, *, weight: float = 0.001, k: int = 1) -> Method:
    """The task is learnt, and the directions in which the features of a batch vary least are shrunk.

    What the pretrained features hold that does not serve the new task stands in the smallest singular values of the
    batch's feature matrix; penalising them keeps such features from being transferred. It is a statistic of the batch:
    of a batch in accumulated parts each part has its own.

    Args:
      forward: see `Method`.
      task: any with labels and one vector an example.
      weight: of the penalty; the paper's η, 0.001.
      k: how many of the smallest singular values; the paper has 1.

    Returns:
      A `Method` with the losses `task` and `spectral`, and the metric `smallest_singular_value`.

    Raises:
      UserError: options out of range; a model without one vector an example, or with fewer than k numbers in it.
    """
    faults = negative_faults(weight=weight)
    whole = isinstance(k, int) and not isinstance(k, bool) and k >= 1
    faults += [] if whole else [f"k is {k!r}; it must be a whole number from 1."]
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        width = feature_width(shapes, "bss")
        fault = f"k is {k}; the features have {width} numbers, and no more singular values."
        raise_faults("The section config.method does not fit the model:", [fault] * (k > width))
        return {}, {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        rows = jnp.asarray(batch["weight"]) > 0
        squares = smallest_squares(example_features(task, outputs, batch, "bss"), rows, k)
        count = jnp.sum(jnp.asarray(batch["weight"]))
        found = {
            "task": supervised_loss(task, outputs, batch, name="bss"),
            "spectral": Loss(weight * jnp.sum(squares) * count, count),
        }
        return found, state, {"smallest_singular_value": jnp.sqrt(squares[0])}

    return Method(loss=loss, init=init)


def smallest_squares(features: jax.Array, rows: jax.Array, k: int) -> jax.Array:
    """The squares of the k smallest of the min(rows, D) singular values, ascending, and 0 where there are fewer.

    They are eigenvalues of the smaller of F Fᵀ and Fᵀ F, whose gradient needs no singular vectors to be apart.

    Args:
      features: F, (B, D), float32.
      rows: (B,), false for padding.
      k: at most D.

    Returns:
      (k,), float32.
    """
    features = jnp.where(rows[:, None], features, 0.0)
    wide = features.shape[0] <= features.shape[1]
    product = jnp.matmul(*((features, features.T) if wide else (features.T, features)), precision="highest")
    squares = jnp.maximum(jnp.linalg.eigvalsh(product), 0.0)
    # Padding adds zeros, which stand first.
    first = squares.shape[0] - jnp.minimum(jnp.sum(rows), features.shape[1])
    places = first + jnp.arange(k)
    return jnp.where(places < squares.shape[0], squares[jnp.minimum(places, squares.shape[0] - 1)], 0.0)
