"""Linear probes on fixed features: logistic regression to convergence, ridge regression, many trained heads at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.base.errors import UserError
from tljax.base.tables import call, suggest
from tljax.train.heads import Heads, train_heads

SAMPLERS = ("stratified", "mteb")
SOLVERS = ("logistic", "ridge", "heads")


class Probe(NamedTuple):
    """The section `probe` of a config.

    Attributes:
      solver: "logistic", "ridge" (least squares on one-hot classes, in closed form), or "heads" (trained by AdamW, all
        of them together: `config.probe.heads`, see `tljax.train.heads.Heads`).
      C: inverse strength of the L2 penalty, as in scikit-learn: C · (sum of losses) + ½ ‖W‖², and for a ridge
        C · (sum of squares) + ‖W‖²; biases are free. Several values are a path, from the strongest penalty on, each
        from the weights of the one before; `validation` chooses.
      max_iterations: of L-BFGS.
      tolerance: convergence, on the largest component of the gradient of the mean objective.
      shots: examples a class; None is all of them.
      repeats: few-shot draws.
      sampler: "stratified" (by `seed + repeat`), or "mteb": MTEB's classification protocol, in which one list of
        indices is shuffled again by RandomState(42) for each repeat, and the first `shots` of each label are taken.
      standardize: z-score the features with the training set's statistics.
      heads: the grid of the solver "heads".
    """

    solver: str = "logistic"
    C: float | Sequence[float] = 1.0
    max_iterations: int = 1000
    tolerance: float = 1e-5
    shots: int | None = None
    repeats: int = 1
    sampler: str = "stratified"
    standardize: bool = False
    heads: Mapping[str, Any] | None = None

    def strengths(self) -> tuple[float, ...]:
        """The values of `C`, ascending; raises `UserError` for what is no number above 0."""
        values = (self.C,) if isinstance(self.C, (int, float)) else tuple(self.C)
        wrong = [c for c in values if isinstance(c, bool) or not isinstance(c, (int, float)) or not c > 0]
        if wrong or not values:
            raise UserError(f"config.probe.C is {self.C!r}; it must be a number above 0, or several.")
        return tuple(sorted(float(c) for c in values))


class Candidate(NamedTuple):
    """A probe that was fitted.

    Attributes:
      name: what sets it apart ("C = 0.1").
      weights: {"kernel": (D, Y), "bias": (Y,)}.
      fit: numbers on how it was fitted.
    """

    name: str
    weights: dict[str, Any]
    fit: dict[str, float]


def candidates(
    probe: Probe, features: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0
) -> list[Candidate]:
    """All probes that the section asks for, fitted on the same examples.

    Args:
      probe: the section.
      features: (examples, D), float32.
      labels: (examples,), integers below `classes`.
      classes: Y.
      seed: of the order of the data, for the solver "heads".

    Raises:
      UserError: an unknown solver, or options that do not belong to it.
    """
    if probe.solver not in SOLVERS:
        raise UserError(f"config.probe.solver is {probe.solver!r}. {suggest(probe.solver, SOLVERS)}")
    if probe.heads is not None and probe.solver != "heads":
        raise UserError(f"config.probe.heads belongs to the solver 'heads', and the solver is {probe.solver!r}.")
    if probe.solver == "heads":
        grid = call(Heads, (), probe.heads, where="config.probe.heads")
        return [Candidate(*found) for found in train_heads(grid, features, labels, classes, seed=seed)]
    if probe.solver == "ridge":
        fitted = ridge(features, labels, classes, probe.strengths())
        return [Candidate(f"C = {c:g}", weights, {}) for c, weights in zip(probe.strengths(), fitted, strict=True)]
    found, start = [], None
    for c in probe.strengths():
        weights, info, start = fit(features, labels, classes, probe._replace(C=c), start=start)
        found.append(Candidate(f"C = {c:g}", weights, info))
    return found


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


def fit(
    features: jax.Array, labels: jax.Array, classes: int, probe: Probe, *, start: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Multinomial logistic regression by L-BFGS, in float32.

    Args:
      features: (examples, D).
      labels: (examples,), integers below `classes`.
      classes: Y.
      probe: `C` (one number), `max_iterations`, `tolerance`.
      start: what a fit with another `C` returned last; default zeros.

    Returns:
      ({"kernel": (D, Y), "bias": (Y,)}, {"iterations", "gradient", "loss"}, where another fit may start).
    """
    # As in scikit-learn, two classes share one weight vector: the penalty falls on their difference.
    columns = classes if classes > 2 else 1
    zeros = {"kernel": jnp.zeros((features.shape[1], columns)), "bias": jnp.zeros((columns,))}
    start = zeros if start is None else start
    weights, info = _minimise(
        start, jnp.asarray(features, jnp.float32), labels, probe.C, probe.max_iterations, probe.tolerance
    )
    return _columns(weights), {name: float(value) for name, value in info.items()}, weights


def ridge(features: np.ndarray, labels: np.ndarray, classes: int, strengths: Sequence[float]) -> list[dict[str, Any]]:
    """Least squares on one-hot classes with an L2 penalty of 1 / C, in closed form, for every C; biases are free.

    One eigendecomposition in float64, of (D, D) or (examples, examples), whichever is smaller, serves all penalties.
    """
    x, y = np.asarray(features, np.float64), np.eye(classes)[labels]
    mean, target = x.mean(0), y.mean(0)
    x, y = x - mean, y - target
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    rotated = vectors.T @ (y if wide else x.T @ y)
    found = []
    for c in strengths:
        solved = vectors @ (rotated / (np.maximum(values, 0) + 1 / c)[:, None])
        kernel = x.T @ solved if wide else solved
        weights = {"kernel": kernel, "bias": target - mean @ kernel}
        found.append({name: jnp.asarray(value, jnp.float32) for name, value in weights.items()})
    return found


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
