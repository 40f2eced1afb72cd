"""GBC: how little the classes overlap, each seen as a Gaussian (Pándy et al. 2022, https://arxiv.org/abs/2111.12780)."""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.transferability.inputs import in_float64, labelled
from tljax.transferability.spectra import centred, left_vectors

COVARIANCES = ("diagonal", "spherical")
FLOOR = 1e-4
"""The least variance of a class, as a part of the mean variance of all examples by component: a class that does not
vary at all would be infinitely far from every other."""


def gbc(features: Any, labels: Any, *, components: int = 64, covariance: str = "spherical") -> float:
    """−Σ exp(−D_B(c, d)) over ordered pairs of different classes, D_B the Bhattacharyya distance of their Gaussians.

    D_B = (m_c − m_d)ᵀ S⁻¹ (m_c − m_d) / 8 + log(det S / √(det S_c · det S_d)) / 2, S = (S_c + S_d) / 2. The features
    are reduced to their principal components first. The same for rotated, shifted and scaled features. A class of one
    example shows no variance and is given the mean variance within the classes that have more. The authors' code counts
    the logarithm of a spherical variance once and not once a component, as the determinant has it; here it is the
    determinant.

    Args:
      features: (N, D).
      labels: (N,), integers.
      components: how many principal components are kept; more than there are is all of them.
      covariance: of each class, "spherical" (one variance; the default of the authors' code) or "diagonal" (one
        variance a component).

    Raises:
      UserError: see `inputs.labelled`; an unknown covariance, or no component.

    Returns:
      From −Y (Y − 1), where the classes are one, to 0.
    """
    if covariance not in COVARIANCES:
        raise UserError(f"There is no covariance called {covariance!r}. {suggest(covariance, COVARIANCES)}")
    if components < 1:
        raise UserError(f"components is {components}; it must be 1 or more.")
    data = labelled(features, labels)
    return float(_gbc(data.rows, data.labels, data.classes, components, covariance == "spherical"))


@in_float64("classes", "components", "spherical")
def _gbc(x: jax.Array, labels: jax.Array, classes: int, components: int, spherical: bool) -> jax.Array:
    values, vectors = left_vectors(centred(x))
    x = (vectors * jnp.sqrt(values))[:, :components]
    members = jax.nn.one_hot(labels, classes, dtype=x.dtype)
    counts = jnp.sum(members, axis=0)[:, None]
    means = members.T @ x / counts
    scatter = members.T @ (x - means[labels]) ** 2
    if spherical:
        scatter = jnp.broadcast_to(jnp.mean(scatter, axis=1, keepdims=True), scatter.shape)
    variances = _variances(scatter, counts, jnp.mean(x**2))

    def overlaps(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The sum of exp(−D_B) of one class and each, itself too, for which it is 1."""
        mean, variance = one
        middle = (variance + variances) / 2
        nearness = jnp.sum((mean - means) ** 2 / middle, axis=1) / 8
        spreads = jnp.sum(jnp.log(middle) - (jnp.log(variance) + jnp.log(variances)) / 2, axis=1) / 2
        return jnp.exp(-nearness - spreads)

    # One class at a time: all pairs at once would be Y² rows.
    pairs = jax.lax.map(overlaps, (means, variances))
    return -jnp.sum(jnp.where(jnp.eye(classes, dtype=bool), 0, pairs))


def _variances(scatter: jax.Array, counts: jax.Array, overall: jax.Array) -> jax.Array:
    """The variance of each component in each class, (Y, P), from sums of squares (Y, P) and counts (Y, 1)."""
    several = counts > 1
    pooled = jnp.sum(scatter, axis=0) / jnp.maximum(jnp.sum(jnp.where(several, counts, 0)), 1)
    # Where nothing varies at all, all classes are one point: any variance makes them overlap.
    floor = jnp.where(overall > 0, FLOOR * overall, 1)
    return jnp.maximum(jnp.where(several, scatter / counts, pooled), floor)
