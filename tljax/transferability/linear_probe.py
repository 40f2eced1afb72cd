"""The accuracy of a linear classifier, in closed form and on examples that it was not fitted to."""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.transferability.inputs import in_float64, labelled
from tljax.transferability.spectra import centred, left_vectors

STRENGTHS = tuple(10.0**power for power in range(-6, 4))
"""Ridge penalties that are tried, as parts of the mean of the squared singular values that are not 0."""


def linear_probe(features: Any, labels: Any) -> float:
    """The leave-one-out accuracy of ridge regression on classes of 0 and 1, with a free intercept.

    Ridge and not logistic regression, because what it says of each example when it is fitted to all others has a closed
    form: the residual of the fit to all, divided by 1 − the example's leverage (Allen 1974). So N fits cost one
    eigendecomposition, and there is no split of the data to choose. The penalty is the one of `STRENGTHS` with the
    least squared error on the examples left out, which is what scikit-learn's RidgeClassifierCV does; that the accuracy
    is told on the same examples flatters it by the choice among ten. The same for rotated, shifted and scaled features.

    Args:
      features: (N, D), of any width: the smaller of N and D decides what it costs.
      labels: (N,), integers. An example whose class has no other one is wrong.

    Raises:
      UserError: see `inputs.labelled`.

    Returns:
      From 0 to 1.
    """
    data = labelled(features, labels)
    return float(_linear_probe(data.rows, data.labels, data.classes))


@in_float64("classes")
def _linear_probe(x: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    count = len(x)
    values, vectors = left_vectors(centred(x))
    targets = jax.nn.one_hot(labels, classes, dtype=x.dtype)
    deviations = targets - jnp.mean(targets, axis=0)
    parts = vectors.T @ deviations
    scale = jnp.sum(values) / jnp.maximum(jnp.sum(values > 0), 1)
    scale = jnp.where(scale > 0, scale, 1)

    def held_out(strength: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(squared error, accuracy) on the examples left out."""
        kept = values / (values + strength * scale)
        residuals = deviations - vectors @ (kept[:, None] * parts)
        leverage = 1 / count + (vectors * vectors) @ kept
        errors = residuals / (1 - leverage)[:, None]
        return jnp.mean(errors**2), jnp.mean(jnp.argmax(targets - errors, axis=1) == labels)

    errors, accuracies = jax.lax.map(held_out, jnp.asarray(STRENGTHS))
    return accuracies[jnp.argmin(errors)]
