"""Losses of single examples: pure functions, float32 inside, no reduction over the batch.

Axes: B batch, Y classes, D width.
"""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_y t_y · log softmax(z)_y, for any distribution over the classes.

    Args:
      logits: (B, Y).
      targets: (B, Y), non-negative; one-hot, smoothed or mixed.

    Returns:
      (B,), float32.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the classes of −t · log σ(z) − (1 − t) · log σ(−z), stable for large logits.

    Args:
      logits: (B, Y), one independent decision a class.
      targets: (B, Y), in [0, 1].

    Returns:
      (B,), float32.
    """
    z = logits.astype(jnp.float32)
    return jnp.mean(-targets * jax.nn.log_sigmoid(z) - (1 - targets) * jax.nn.log_sigmoid(-z), axis=-1)


def squared_error(predicted: jax.Array, targets: jax.Array) -> jax.Array:
    """(p − t)², both (B,); the result is (B,), float32."""
    return jnp.square(predicted.astype(jnp.float32) - targets)


def cosine(a: jax.Array, b: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """The cosine of the angle between rows.

    Args:
      a: (B, D).
      b: (B, D).
      epsilon: the least length that a row counts with, so that a zero row has cosine 0 and a finite gradient.

    Returns:
      (B,), float32, in [−1, 1] up to rounding.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # The maximum is taken of the squares: the gradient of a square root at 0 is infinite.
    lengths = [jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), epsilon**2)) for x in (a, b)]
    return jnp.sum(a * b, axis=-1) / (lengths[0] * lengths[1])


def cosine_regression(a: jax.Array, b: jax.Array, targets: jax.Array) -> jax.Array:
    """(cos(a, b) − t)² for rows of (B, D) and targets (B,); Reimers and Gurevych 2019. Returns (B,), float32."""
    return squared_error(cosine(a, b), targets)


def smooth(targets: jax.Array, amount: float) -> jax.Array:
    """(1 − amount) · t + amount / Y: part of each distribution in (B, Y) spread evenly. Szegedy et al. 2016."""
    return (1 - amount) * targets + amount / targets.shape[-1]
