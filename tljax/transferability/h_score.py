"""The H-score and its regularised form: the part of the whitened features' variance that the classes make."""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.transferability.inputs import in_float64, labelled
from tljax.transferability.spectra import centred, projected


def h_score(features: Any, labels: Any) -> float:
    """tr(cov(f)⁻¹ · cov(E[f | y])) (Bao et al. 2019, https://arxiv.org/abs/2212.10082).

    It is the sum of the squared canonical correlations of features and classes: no map of the features that can be
    undone changes it. Covariances that have no inverse are given the pseudo-inverse: directions in which the features
    do not vary have no part. With D ≥ N − 1 independent features it is Y − 1 whatever the labels are and tells
    nothing; `regularized_h_score` does.

    Args:
      features: (N, D).
      labels: (N,), integers.

    Raises:
      UserError: see `inputs.labelled`.

    Returns:
      From 0 to min(D, Y − 1).
    """
    data = labelled(features, labels)
    return float(_h_score(data.rows, data.labels, data.classes, shrunk=False))


def regularized_h_score(features: Any, labels: Any) -> float:
    """(1 − a) · tr(cov_a(f)⁻¹ · cov(E[f | y])), cov_a the covariance shrunk towards a multiple of the identity matrix.

    The shrinkage a is that of Ledoit and Wolf 2004, in closed form from the features (Ibrahim et al. 2022,
    https://arxiv.org/abs/2110.06893). It is sound with more features than examples. It is the same for rotated, shifted
    and scaled features, and not for every map that can be undone. Both covariances are divided by N; code that divides
    one of them by N − 1 has scores that are N / (N − 1) times as large.

    Args:
      features: (N, D).
      labels: (N,), integers.

    Raises:
      UserError: see `inputs.labelled`.

    Returns:
      From 0 to min(D, Y − 1).
    """
    data = labelled(features, labels)
    return float(_h_score(data.rows, data.labels, data.classes, shrunk=True))


@in_float64("classes", "shrunk")
def _h_score(x: jax.Array, labels: jax.Array, classes: int, *, shrunk: bool) -> jax.Array:
    x = centred(x)
    members = jax.nn.one_hot(labels, classes, dtype=x.dtype)
    # Orthonormal columns that span the functions of the class.
    values, parts = projected(x, members / jnp.sqrt(jnp.sum(members, axis=0)))
    between = jnp.sum(parts**2, axis=1)
    if not shrunk:
        return jnp.sum(between)
    variances = values / len(x)
    mean, shrinkage = _shrinkage(x, variances)
    kept = (1 - shrinkage) * variances
    whole = kept + shrinkage * mean
    return jnp.sum(jnp.where(whole > 0, kept * between / jnp.where(whole > 0, whole, 1), 0))


def _shrinkage(x: jax.Array, variances: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the mean variance; the weight of Ledoit and Wolf on it) of centred rows (N, D) and their eigenvalues (R,)."""
    count, width = x.shape
    mean = jnp.sum(variances) / width
    # Eigenvalues that are not listed are 0; as a sum of squares it cannot fall below 0.
    distance = (jnp.sum((variances - mean) ** 2) + (width - len(variances)) * mean**2) / width
    spread = (jnp.mean(jnp.sum(x * x, axis=1) ** 2) - jnp.sum(variances**2)) / (count * width)
    spread = jnp.clip(spread, 0, distance)
    return mean, jnp.where(distance > 0, spread / jnp.where(distance > 0, distance, 1), 0)
