"""Scores from what the source's own head says of the task's examples: LEEP and NCE.

They know nothing of the features. The head must be the one that the source was trained with.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tljax.transferability.inputs import distributed, in_float64


def leep(probabilities: Any, labels: Any) -> float:
    """The log expected empirical prediction (Nguyen et al. 2020, https://arxiv.org/abs/2002.12462).

    mean_i log Σ_z P(y_i | z) θ(x_i)_z, with P(y, z) = mean_i [y_i = y] θ(x_i)_z: the mean log-likelihood of labels that
    are drawn by way of the source's classes. It is `nce` where the head is certain, and −H(Y) where the head says the
    same of every example. The paper's bound by NCE (property 2) holds with this P(y | z), and not always with `nce`,
    which counts only each example's likeliest class.

    Args:
      probabilities: (N, Z), θ: the source head's distribution over its own classes.
      labels: (N,), integers.

    Raises:
      UserError: see `inputs.distributed`.

    Returns:
      Nats, at most 0.
    """
    data = distributed(probabilities, labels)
    return float(_leep(data.rows, data.labels, data.classes))


def nce(probabilities: Any, labels: Any) -> float:
    """The negative conditional entropy −H(Y | Z) (Tran et al. 2019, https://arxiv.org/abs/1908.08142).

    Z is the class that the source's head thinks likeliest; of equal ones the first.

    Args:
      probabilities: (N, Z), the source head's distribution over its own classes.
      labels: (N,), integers.

    Raises:
      UserError: see `inputs.distributed`.

    Returns:
      Nats, from −log Y to 0.
    """
    data = distributed(probabilities, labels)
    return float(_nce(data.rows, data.labels, data.classes))


@in_float64("classes")
def _leep(theta: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    conditional = _conditional(_joint(theta, labels, classes))
    likelihoods = jnp.take_along_axis(theta @ conditional.T, labels[:, None], axis=1)
    return jnp.mean(jnp.log(likelihoods))


@in_float64("classes")
def _nce(theta: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    likeliest = jax.nn.one_hot(jnp.argmax(theta, axis=1), theta.shape[1], dtype=theta.dtype)
    joint = _joint(likeliest, labels, classes)
    return jnp.sum(jax.scipy.special.xlogy(joint, _conditional(joint)))


def _joint(theta: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """P(y, z), (Y, Z)."""
    return jax.nn.one_hot(labels, classes, dtype=theta.dtype).T @ theta / len(theta)


def _conditional(joint: jax.Array) -> jax.Array:
    """P(y | z), (Y, Z); 0 for a class of the source that has no part in any example."""
    marginal = jnp.sum(joint, axis=0)
    return joint / jnp.where(marginal > 0, marginal, 1)
