"""The accuracy of nearest neighbours: no assumption on how the classes lie, and no fitting."""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.transferability.inputs import in_float64, labelled
from tljax.transferability.spectra import centred

METRICS = ("cosine", "euclidean")
BLOCK = 256
"""Examples whose distances to all others are held at a time."""


def knn(features: Any, labels: Any, *, k: int = 1, metric: str = "euclidean") -> float:
    """The leave-one-out accuracy of the k nearest neighbours (used so by Puigcerver et al. 2021,
    https://arxiv.org/abs/2009.13239, with one neighbour and the Euclidean distance).

    Each example gets the class that most of its k nearest others have; of classes with as many, that of the nearest.
    Of others that are equally far, but for rounding, those that come first count. An example whose class has no other
    one is wrong.

    Args:
      features: (N, D).
      labels: (N,), integers.
      k: neighbours, below N.
      metric: "euclidean", or "cosine", for which a row of zeros is as far from each other row as a right angle.

    Raises:
      UserError: see `inputs.labelled`; an unknown metric, or a k that is not from 1 to N − 1.

    Returns:
      From 0 to 1.
    """
    if metric not in METRICS:
        raise UserError(f"There is no metric called {metric!r}. {suggest(metric, METRICS)}")
    data = labelled(features, labels)
    if not 1 <= k < len(data.rows):
        raise UserError(f"k is {k}; with {len(data.rows)} examples it must be from 1 to {len(data.rows) - 1}.")
    return float(_knn(data.rows, data.labels, k, metric == "cosine"))


@in_float64("k", "cosine")
def _knn(x: jax.Array, labels: jax.Array, k: int, cosine: bool) -> jax.Array:
    if cosine:
        lengths = jnp.linalg.norm(x, axis=1, keepdims=True)
        x = x / jnp.where(lengths > 0, lengths, 1)
    else:
        # Distances do not see a shift, and rounding does.
        x = centred(x)
    # A row of zeros has no direction; with the squares of the others' lengths it would be the nearest of all.
    squares = jnp.zeros(len(x)) if cosine else jnp.sum(x * x, axis=1)

    def right(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Whether the neighbours of an example have its class."""
        row, place = example
        # Without the square of the row itself, which is the same for all.
        distances = (squares - 2 * (x @ row)).at[place].set(jnp.inf)

        def nearest(left: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            found = jnp.argmin(left)
            return left.at[found].set(jnp.inf), labels[found]

        # For few neighbours quicker than sorting.
        _, found = jax.lax.scan(nearest, distances, None, length=k)
        votes = jnp.sum(found[:, None] == found, axis=1)
        return found[jnp.argmax(votes)] == labels[place]

    return jnp.mean(jax.lax.map(right, (x, jnp.arange(len(x))), batch_size=BLOCK).astype(x.dtype))
