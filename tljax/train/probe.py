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
BLOCK = 2**14
"""Examples that are held in float64 at a time."""


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
    fitted = logistic(features, labels, classes, probe)
    return [Candidate(f"C = {c:g}", *found) for c, found in zip(probe.strengths(), fitted, strict=True)]


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


def logistic(
    features: np.ndarray, labels: np.ndarray, classes: int, probe: Probe
) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Multinomial logistic regression for every `C`, the strongest penalty first, each from the weights of the last.

    L-BFGS in float32, in the coordinates of the features' principal directions, each stretched by what the objective
    bends along it while nothing is known: the Hessian is near the identity there, and a path takes a fraction of the
    steps. Directions in which the features do not vary have no weights, as their penalty wants it; of wide features
    there are no more than examples.

    Args:
      features: (examples, D).
      labels: (examples,), integers below `classes`.
      classes: Y.
      probe: `C`, `max_iterations`, `tolerance`.

    Returns:
      ({"kernel": (D, Y), "bias": (Y,)}, {"iterations", "gradient", "loss"}) of each; "gradient" is the largest
      component by the weights as they are returned.
    """
    mean, variances, directions = _principal(np.asarray(features))
    given = [jnp.asarray(each, jnp.float32) for each in (directions, mean)]
    turned = (jnp.asarray(features, jnp.float32) - given[1]) @ given[0]
    # As in scikit-learn, two classes share one weight vector: the penalty falls on their difference.
    columns = classes if classes > 2 else 1
    bend = (1 - 1 / classes) / classes
    weights = {"kernel": jnp.zeros((columns, len(variances))), "bias": jnp.zeros((columns,))}
    found = []
    for c in probe.strengths():
        stretch = jnp.asarray(1 / np.sqrt(bend * variances + 1 / (c * len(features))), jnp.float32)
        start = {"kernel": weights["kernel"] / stretch, "bias": weights["bias"]}
        weights, info = _minimise(
            start, turned, *given, jnp.asarray(labels), stretch, c, probe.max_iterations, probe.tolerance
        )
        kernel = jnp.asarray(directions @ np.asarray(weights["kernel"], np.float64).T, jnp.float32)
        bias = weights["bias"] - given[-1] @ kernel
        found.append((_columns({"kernel": kernel, "bias": bias}), {name: float(x) for name, x in info.items()}))
    return found


def _principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean (D,), mean squares around it along K directions (K,), these (D, K)) of (examples, D), in float64."""
    mean = features.mean(0, dtype=np.float64)
    if wide := features.shape[1] > features.shape[0]:
        x = features - mean
        products = x @ x.T
    else:
        blocks = (features[i : i + BLOCK] - mean for i in range(0, len(features), BLOCK))
        products = sum(block.T @ block for block in blocks)
    values, vectors = np.linalg.eigh(products / len(features))
    kept = values > values.max() * len(values) * np.finfo(np.float32).eps ** 2
    values, vectors = values[kept], vectors[:, kept]
    return mean, values, x.T @ vectors / np.sqrt(values * len(features)) if wide else vectors


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
def _minimise(start, turned, directions, mean, labels, stretch, C, max_iterations, tolerance):
    """(weights in the turned coordinates, info), from `start` in the stretched ones.

    Kernels are (Y, K) here, a row a class: on a CPU their gradient takes a fraction of the time that one of (K, Y)
    does (`python -m benchmarks.layers`, gradient of a kernel).
    """
    count = turned.shape[0]

    def objective(weights):
        kernel = stretch * weights["kernel"]
        logits = turned @ kernel.T + weights["bias"]
        logits = logits if len(kernel) > 1 else jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean() + 0.5 * jnp.sum(kernel**2) / (C * count)

    def largest(state):
        gradient = optax.tree.get(state, "grad")
        by_kernel = (gradient["kernel"] / stretch) @ directions.T + gradient["bias"][:, None] * mean
        return jnp.maximum(jnp.max(jnp.abs(by_kernel)), jnp.max(jnp.abs(gradient["bias"])))

    solver = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def going(carry):
        _, state, iteration = carry
        return (iteration == 0) | ((iteration < max_iterations) & (largest(state) > tolerance))

    def body(carry):
        weights, state, iteration = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(weights, updates), state, iteration + 1

    weights, state, iterations = jax.lax.while_loop(going, body, (start, solver.init(start), 0))
    info = {"iterations": iterations, "gradient": largest(state), "loss": objective(weights)}
    return {"kernel": stretch * weights["kernel"], "bias": weights["bias"]}, info


def _columns(weights: dict[str, Any]) -> dict[str, Any]:
    """One column a class: a single column belongs to the second class, and the first is zero."""
    if weights["bias"].shape[0] > 1:
        return weights
    return {name: jnp.concatenate([jnp.zeros_like(w), w], axis=-1) for name, w in weights.items()}


def predict(weights: dict[str, Any], features: np.ndarray) -> np.ndarray:
    """Class probabilities, (examples, Y)."""
    return np.asarray(jax.nn.softmax(jnp.asarray(features) @ weights["kernel"] + weights["bias"]))
