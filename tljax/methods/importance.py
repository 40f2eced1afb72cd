"""Weights for labelled examples of one distribution that make them stand for another: covariate shift.

Axes: N labelled examples, M examples of the target, D width of the features.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import lookup, suggest
from tljax.base.types import Method, Survey, Task
from tljax.domains import FOLDS, domain_probabilities, median_bandwidth, rbf_kernel
from tljax.methods.common import TWO_DOMAINS, example_features, feature_width, supervised_loss

ESTIMATES = ("kmm", "classifier", "given")
TASKS = ("classification", "regression")
MOST_KERNEL_ROWS = 10_000
"""Kernel mean matching keeps N² numbers: 800 MB at this N."""
ROUNDS = 3000
TOLERANCE = 1e-7


def importance(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    estimate: str = "classifier",
    most: float = 10.0,
    strength: float = 1.0,
    bandwidth: float | None = None,
    slack: float | None = None,
    weights: str | None = None,
) -> Method:
    """The task's loss on `train`, each example weighted by p_target(x) / p_train(x) (Shimodaira 2000).

    The ratio is estimated once, before the first step, from the vectors that the head reads, of all of `train` and
    `target`, in inference mode. "kmm" is kernel mean matching (Huang et al. 2007): the weights for which the weighted
    mean of `train` in the feature space of a Gaussian kernel is nearest to the mean of `target`. "classifier" takes the
    odds of a logistic regression that tells the domains apart, for each example one that was not fitted to it (Bickel
    et al. 2007). "given" reads the weights: those of a known selection. Weights are scaled to a mean of one, and the
    loss is divided by the examples' own weights and not by these, so that it is unbiased for the mean over the target,
    and weights of one give the method `supervised`.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: classification or regression.
      estimate: "kmm", "classifier" or "given".
      most: the largest weight that may be estimated, before the scaling to a mean of one.
      strength: for "classifier", the inverse of its L2 penalty (scikit-learn's C).
      bandwidth: for "kmm", σ of exp(−‖x − y‖² / 2σ²); None is the median distance.
      slack: for "kmm", how far the mean of the weights may be from 1; None is the paper's 1 − 1 / √N.
      weights: for "given", N numbers in the order of the records of config.data.train as the entry chooses them: a
        `.npy` file, or `package.module:function:REST` for function(REST).

    Returns:
      A `Method` with the loss `task` and the metric `effective_sample_size`, (Σw)² / Σw² as a share of N: 1 where all
      weights are equal.

    Raises:
      UserError: options out of range; another task; weights that cannot be read or are not N numbers from 0; more
        examples than "kmm" can hold.
    """
    _check(estimate=estimate, most=most, strength=strength, bandwidth=bandwidth, slack=slack, weights=weights)

    def init(rng, shapes):
        if task.name not in TASKS:
            raise UserError(f"The method importance serves {' and '.join(TASKS)}, and this task is {task.name}.")
        feature_width(shapes, "importance")
        return {}, {}

    def start(state, live, counts):
        count = counts["train"]
        if estimate == "kmm" and count > MOST_KERNEL_ROWS:
            raise UserError(
                f"The method importance with estimate='kmm' holds at most {MOST_KERNEL_ROWS:,} labelled examples, and "
                f"config.data.train has {count:,}. Take estimate='classifier', or set config.data.train.limit."
            )
        found = read_weights(weights, count) if estimate == "given" else np.ones(count)
        return {"weights": jnp.asarray(found, jnp.float32)}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        known = state["method"]["weights"]
        result = supervised_loss(task, outputs, batch, name="importance", factor=known[batch["index"]])
        size = jnp.square(jnp.sum(known)) / (jnp.sum(jnp.square(known)) * len(known))
        return {"task": result}, state, {"effective_sample_size": size}

    def read(params, state, batch):
        outputs, _ = forward(params, state, task.inputs(batch), None, train=False)
        return {"feature": example_features(task, outputs, batch, "importance")}

    def digest(state, found):
        source, target = (found[name]["feature"] for name in ("train", "target"))
        if estimate == "kmm":
            ratios = kernel_mean_matching(source, target, most=most, bandwidth=bandwidth, slack=slack)
        else:
            ratios = classifier_ratios(source, target, most=most, strength=strength)
        return {"weights": scaled(ratios)}

    if estimate == "given":
        return Method(loss=loss, init=init, start=start)
    return Method(
        loss=loss,
        init=init,
        start=start,
        survey=Survey(("train", "target"), read, digest, every="start"),
        **TWO_DOMAINS,
    )


def _check(*, estimate: str, weights: str | None, **numbers: float | None) -> None:
    faults = [] if estimate in ESTIMATES else [f"estimate is {estimate!r}. {suggest(estimate, ESTIMATES)}"]
    if (estimate == "given") != (weights is not None):
        faults.append(f"weights is {weights!r} and estimate is {estimate!r}; weights belong to estimate='given'.")
    for name in ("most", "strength", "bandwidth"):
        if numbers[name] is not None and not numbers[name] > 0:
            faults.append(f"{name} is {numbers[name]!r}; it must be above 0.")
    if numbers["most"] < 1:
        faults.append(f"most is {numbers['most']!r}; weights with a mean of one need 1 at least.")
    if numbers["slack"] is not None and not 0 <= numbers["slack"] <= 1:
        faults.append(f"slack is {numbers['slack']!r}; it must be from 0 to 1.")
    raise_faults("The section config.method cannot be used:", faults)


def scaled(ratios: np.ndarray) -> np.ndarray:
    """`ratios` (N,) with a mean of one; `UserError` where they are all 0."""
    total = float(np.sum(ratios))
    if not total > 0:
        raise UserError("The method importance found no weight above 0: no labelled example is like the target.")
    return np.asarray(ratios, np.float64) * (len(ratios) / total)


def read_weights(spec: str, count: int) -> np.ndarray:
    """The `count` weights that `spec` names, with a mean of one; see `importance`."""
    if spec.endswith(".npy"):
        path = Path(os.path.expandvars(spec)).expanduser()
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"config.method.weights: {path} cannot be read as npy (without pickles): {error}"
            ) from error
    else:
        module, _, rest = spec.partition(":")
        function, _, rest = rest.partition(":")
        if not function:
            raise UserError(f"config.method.weights is {spec!r}: name a .npy file, or package.module:function:REST.")
        found = lookup({}, f"{module}:{function}", what="function for config.method.weights")(rest)
    found = np.asarray(found)
    if found.shape != (count,) or found.dtype.kind not in "iuf" or not np.isfinite(found).all() or found.min() < 0:
        raise UserError(
            f"config.method.weights: {spec} holds {found.dtype} {found.shape}; it must hold one finite number from 0 "
            f"for each of the {count} records of config.data.train, as the entry chooses them."
        )
    return scaled(found)


def classifier_ratios(
    source: np.ndarray, target: np.ndarray, *, most: float = 10.0, strength: float = 1.0, seed: int = 0
) -> np.ndarray:
    """p_target(x) / p_source(x) of each row of `source` (N, D), by a classifier that tells it from `target` (M, D).

    Both domains weigh the same in the fit, so that the odds need no factor N / M. The classifier of a row has not seen
    it: one that has would tell all rows apart where D is large, and give every one of them a weight near 0.
    """
    folds = min(FOLDS, len(source), len(target))
    if folds < 2:
        raise UserError("The method importance needs two examples of config.data.train and of config.data.target.")
    rows, domain = np.concatenate([source, target]), np.repeat([0, 1], [len(source), len(target)])
    likely = domain_probabilities(rows, domain, folds=folds, seed=seed, strength=strength)[: len(source)]
    return np.minimum(likely / np.maximum(1 - likely, np.finfo(np.float64).tiny), most)


def kernel_mean_matching(
    source: np.ndarray,
    target: np.ndarray,
    *,
    most: float = 10.0,
    bandwidth: float | None = None,
    slack: float | None = None,
) -> np.ndarray:
    """The weights β of `source` (N, D) that bring its mean nearest to that of `target` (M, D) (Huang et al. 2007).

    They minimise ‖(1/N) Σ β_i φ(x_i) − (1/M) Σ φ(y_j)‖² over 0 ≤ β_i ≤ `most` and |mean β − 1| ≤ `slack`.

    Returns:
      (N,), float64.
    """
    bandwidth = median_bandwidth(np.concatenate([source, target])) if bandwidth is None else bandwidth
    slack = 1 - 1 / np.sqrt(len(source)) if slack is None else slack
    kernel = rbf_kernel(source, source, bandwidth)
    pull = rbf_kernel(source, target, bandwidth).mean(axis=1) * len(source)
    return box_programme(
        kernel, pull, most=most, least_sum=len(source) * (1 - slack), most_sum=len(source) * (1 + slack)
    )


def box_programme(
    matrix: np.ndarray, pull: np.ndarray, *, most: float, least_sum: float, most_sum: float
) -> np.ndarray:
    """The x that minimises ½ xᵀ A x − pullᵀ x over 0 ≤ x ≤ `most` and `least_sum` ≤ Σx ≤ `most_sum`.

    By accelerated projected gradients that start anew where the value rises (O'Donoghue and Candès 2015).

    Args:
      matrix: A, (N, N), symmetric and positive semidefinite.
      pull: (N,).
    """

    def project(x: np.ndarray) -> np.ndarray:
        return onto_slab(x, most=most, least_sum=least_sum, most_sum=most_sum)

    # The largest row sum bounds the largest eigenvalue.
    rate = 1 / np.abs(matrix).sum(axis=1).max()
    x = ahead = project(np.ones(len(pull)))
    speed = 1.0
    for _ in range(ROUNDS):
        renewed = project(ahead - rate * (matrix @ ahead - pull))
        faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
        moved = renewed - x
        if (ahead - renewed) @ moved > 0:
            faster, ahead = 1.0, renewed
        else:
            ahead = renewed + (speed - 1) / faster * moved
        x, speed = renewed, faster
        if np.abs(moved).max() < TOLERANCE * x.max():
            break
    return x


def onto_slab(x: np.ndarray, *, most: float, least_sum: float, most_sum: float) -> np.ndarray:
    """The nearest point to `x` with 0 ≤ each ≤ `most` and `least_sum` ≤ the sum ≤ `most_sum`."""
    inside = np.clip(x, 0, most)
    wanted = np.clip(inside.sum(), least_sum, most_sum)
    if wanted == inside.sum():
        return inside
    # It is clip(x + s) for one s, and the sum of that is piecewise linear in s: it bends where a value leaves 0 or
    # reaches `most`.
    bends = np.concatenate([-x, most - x])
    order = np.argsort(bends)
    bends, slopes = bends[order], np.cumsum(np.repeat([1.0, -1.0], len(x))[order])
    sums = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(bends))])
    return np.clip(x + np.interp(wanted, sums, bends), 0, most)
