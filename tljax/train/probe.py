"""Logistic regression to convergence on fixed features: the linear probe without a learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.base.errors import UserError
from tljax.base.tables import suggest

SAMPLERS = ("stratified", "mteb")


class Probe(NamedTuple):
    """The section `probe` of a config.

    Attributes:
      C: inverse strength of the L2 penalty, as in scikit-learn: C · (sum of losses) + ½ ‖W‖²; biases are free.
      max_iterations: of L-BFGS.
      tolerance: convergence, on the largest component of the gradient of the mean objective.
      shots: examples a class; None is all of them.
      repeats: few-shot draws.
      sampler: "stratified" (by `seed + repeat`), or "mteb": MTEB's classification protocol, in which one list of
        indices is shuffled again by RandomState(42) for each repeat, and the first `shots` of each label are taken.
      standardize: z-score the features with the training set's statistics.
    """

    C: float = 1.0
    max_iterations: int = 1000
    tolerance: float = 1e-5
    shots: int | None = None
    repeats: int = 1
    sampler: str = "stratified"
    standardize: bool = False


def draws(probe: Probe, labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The training indices of each repeat; `labels` is (examples,)."""
    if probe.sampler not in SAMPLERS:
        raise UserError(f"config.probe.sampler is {probe.sampler!r}. {suggest(probe.sampler, SAMPLERS)}")
    if probe.shots is None:
        return [np.arange(len(labels))]
    order, found = np.arange(len(labels)), []
    for repeat in range(probe.repeats):
        if probe.sampler == "mteb":
            np.random.RandomState(42).shuffle(order)
        else:
            order = np.random.Generator(np.random.PCG64(seed + repeat)).permutation(len(labels))
        found.append(np.concatenate([order[labels[order] == y][: probe.shots] for y in np.unique(labels)]))
    return found


def standardized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both z-scored with the mean and deviation of `train`; constant features stay 0."""
    mean, deviation = _moments(train)
    return (train - mean) / deviation, (test - mean) / deviation


def unstandardized(weights: dict[str, Any], train: np.ndarray) -> dict[str, Any]:
    """Weights for features as they are, from weights for features that were `standardized` with `train`."""
    mean, deviation = _moments(train)
    kernel = weights["kernel"] / deviation[:, None]
    return {"kernel": kernel, "bias": weights["bias"] - mean @ kernel}


def _moments(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    deviation = train.std(0)
    return train.mean(0), np.where(deviation > 0, deviation, 1)


def fit(features: jax.Array, labels: jax.Array, classes: int, probe: Probe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Multinomial logistic regression by L-BFGS, in float32.

    Args:
      features: (examples, D).
      labels: (examples,), integers below `classes`.
      classes: Y.
      probe: `C`, `max_iterations`, `tolerance`.

    Returns:
      ({"kernel": (D, Y), "bias": (Y,)}, {"iterations", "gradient", "loss"}).
    """
    # As in scikit-learn, two classes share one weight vector: the penalty falls on their difference.
    columns = classes if classes > 2 else 1
    start = {"kernel": jnp.zeros((features.shape[1], columns)), "bias": jnp.zeros((columns,))}
    weights, info = _minimise(
        start, jnp.asarray(features, jnp.float32), labels, probe.C, probe.max_iterations, probe.tolerance
    )
    return _columns(weights), {name: float(value) for name, value in info.items()}


@jax.jit
def _minimise(start, features, labels, C, max_iterations, tolerance):
    count = features.shape[0]

    def objective(weights):
        full = _columns(weights)
        logits = features @ full["kernel"] + full["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean() + 0.5 * jnp.sum(weights["kernel"] ** 2) / (C * count)

    solver = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def going(carry):
        _, state, iteration = carry
        gradient = optax.tree.get(state, "grad")
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)]))
        return (iteration == 0) | ((iteration < max_iterations) & (largest > tolerance))

    def body(carry):
        weights, state, iteration = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(weights, updates), state, iteration + 1

    weights, state, iterations = jax.lax.while_loop(going, body, (start, solver.init(start), 0))
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(optax.tree.get(state, "grad"))]))
    return weights, {"iterations": iterations, "gradient": largest, "loss": objective(weights)}


def _columns(weights: dict[str, Any]) -> dict[str, Any]:
    """One column a class: a single column belongs to the second class, and the first is zero."""
    if weights["bias"].shape[0] > 1:
        return weights
    return {name: jnp.concatenate([jnp.zeros_like(w), w], axis=-1) for name, w in weights.items()}


def predict(weights: dict[str, Any], features: np.ndarray) -> np.ndarray:
    """Class probabilities, (examples, Y)."""
    return np.asarray(jax.nn.softmax(jnp.asarray(features) @ weights["kernel"] + weights["bias"]))
