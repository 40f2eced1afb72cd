"""LogME: the evidence of a Bayesian linear model for the labels (You et al. 2021, https://arxiv.org/abs/2102.11005)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.transferability.inputs import in_float64, labelled, targeted
from tljax.transferability.spectra import projected

GRID = 160
"""Ratios of signal to noise that are tried first, evenly spaced on a logarithmic scale."""
HALVINGS = 40
LARGEST = 2.0**46
"""The largest ratio, by the largest squared singular value: there noise is the rounding of float32 features. It matters
where labels are an exact linear function of fewer features than examples: then the evidence has no bound."""
SMALLEST = 2.0**-33
"""The smallest ratio, by the sum of the squared singular values: there features explain nothing."""


def logme(features: Any, labels: Any) -> float:
    """The logarithm of the maximum evidence, by example, as the mean over the classes.

    Each class is a column y of 0 and 1 with the model y ~ N(F w, I/β), w ~ N(0, I/α), whose evidence is
    N(y; 0, I/β + F Fᵀ/α). It is maximised over both: for each ratio s = β/α the best β has a closed form, and what is
    left is a function of s alone, which is tried on a grid and then followed to where its slope is 0. So it is the
    global maximum, where the paper's iteration stops near a stationary point. Features are neither centred nor scaled,
    as in the paper: rotations and a common scale change nothing, shifts do.

    Args:
      features: (N, D), of any width: the smaller of N and D decides what it costs.
      labels: (N,), integers; or for a regression floats, (N,) or (N, K), each column a target.

    Raises:
      UserError: see `inputs.labelled` and `inputs.targeted`.

    Returns:
      Nats by example; it may be above 0, as the logarithm of a density may.
    """
    if np.issubdtype(np.asarray(labels).dtype, np.floating):
        return float(_mean_evidence(*targeted(features, labels)))
    data = labelled(features, labels)
    return float(_mean_evidence(data.rows, np.eye(data.classes)[data.labels]))


@in_float64()
def _mean_evidence(x: jax.Array, targets: jax.Array) -> jax.Array:
    """The maximum of the logarithm of the evidence by example, as the mean over targets (N, K), of features (N, D)."""
    count = len(x)
    values, parts = projected(x, targets)
    squares, total = parts**2, jnp.sum(targets**2, axis=0)
    rest = total - jnp.sum(squares, axis=0)
    # What features cannot explain. A difference of what is equal but for rounding is nothing.
    rest = jnp.where(rest > max(x.shape) * jnp.finfo(x.dtype).eps * total, rest, 0)

    def evidence(error: jax.Array, gains: jax.Array) -> jax.Array:
        """Its logarithm with the best β, N / `error`; `gains` (…, R) are 1 + s · squared singular values."""
        return -0.5 * (jnp.log(2 * jnp.pi * error / count) + 1 + jnp.sum(jnp.log(gains), axis=-1) / count)

    def slope(log_ratio: jax.Array) -> jax.Array:
        """The derivative of 2 · evidence by the logarithm of the ratio, at (K,): (K,)."""
        scaled = values * jnp.exp(log_ratio)[:, None]
        shares = scaled / (1 + scaled)
        error = rest + jnp.sum(squares.T / (1 + scaled), axis=-1)
        return jnp.sum(squares.T * shares / (1 + scaled), axis=-1) / error - jnp.sum(shares, axis=-1) / count

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (bracket[0] + bracket[1]) / 2
        rising = slope(middle) > 0
        return jnp.where(rising, middle, bracket[0]), jnp.where(rising, bracket[1], middle)

    some = values[0] > 0
    low = jnp.log(SMALLEST / jnp.where(some, jnp.sum(values), 1))
    high = jnp.log(LARGEST / jnp.where(some, values[0], 1))
    grid = jnp.linspace(low, high, GRID)
    gains = 1 + jnp.exp(grid)[:, None] * values
    best = jnp.argmax(evidence(rest + (1 / gains) @ squares, gains[:, None]), axis=0)
    bracket = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, GRID - 1)]
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, bracket)
    gains = 1 + jnp.exp((low + high) / 2)[:, None] * values
    return jnp.mean(evidence(rest + jnp.sum(squares.T / gains, axis=-1), gains))
