"""Singular values and vectors of tables of features, from the smaller of their two Gram matrices. In float64."""

import jax
import jax.numpy as jnp


def centred(x: jax.Array) -> jax.Array:
    """Rows (N, D) without their mean. Columns that are constant become exactly 0."""
    # The mean of equal numbers is not always that number, and what is left would look like a feature.
    x = x - x[0]
    return x - jnp.mean(x, axis=0)


def projected(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(squared singular values (R,), Uᵀ · `targets` (R, K)) of x = U S Vᵀ, (N, D), R = min(N, D); targets (N, K).

    A direction whose singular value is within rounding of 0 has the value 0 and no part of the targets.
    """
    values, vectors, inverse = _eigen(x)
    if _wide(x):
        return values, jnp.where(values[:, None] > 0, vectors.T @ targets, 0)
    # U is never made: V and the products with the targets are much smaller.
    return values, inverse[:, None] * (vectors.T @ (x.T @ targets))


def left_vectors(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(squared singular values (R,), descending; U (N, R)), with columns of 0 where the value is 0."""
    values, vectors, inverse = _eigen(x)
    return values, jnp.where(values > 0, vectors, 0) if _wide(x) else (x @ vectors) * inverse


def _wide(x: jax.Array) -> bool:
    return x.shape[0] < x.shape[1]


def _eigen(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(values (R,), descending; eigenvectors of the smaller Gram matrix (R, R); 1 / √values, 0 where they are 0)."""
    values, vectors = jnp.linalg.eigh(x @ x.T if _wide(x) else x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    least = max(x.shape) * jnp.finfo(values.dtype).eps * values[0]
    values = jnp.where(values > least, values, 0)
    return values, vectors, jnp.where(values > 0, jax.lax.rsqrt(jnp.where(values > 0, values, 1)), 0)
