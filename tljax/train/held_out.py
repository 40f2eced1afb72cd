"""How often a linear classifier is right on examples that it was not fitted to."""

from collections.abc import Iterator

import numpy as np

from tljax.train.probe import Probe, logistic, predict

FOLDS = 5
SETTINGS = Probe(C=(1e-3, 1e-2, 1e-1, 1.0), max_iterations=200, tolerance=1e-3)
"""Penalties for features whose columns have a mean variance of 1. What is asked is which example is right, and for that
a solver may stop early."""


def held_out_right(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Whether multinomial logistic regression is right on each example that it was not fitted to, (N,) bool.

    These are the examples of `validation`, or else all of `features`, by stratified cross-validation in `FOLDS` parts.
    The penalty of `SETTINGS` that is right most often counts, and being the best of a few on the same examples flatters
    it a little. All columns are shifted, and scaled by one factor.

    Args:
      features: (N, D).
      labels: (N,), integers below `classes`.
      classes: Y.
      validation: (features (M, D), labels (M,)).
      seed: of the parts.
    """
    if validation is not None:
        return _best(_right(features, labels, *validation, classes))
    right = np.zeros((len(SETTINGS.strengths()), len(labels)), bool)
    for part in _parts(labels, seed):
        right[:, part] = _right(features[~part], labels[~part], features[part], labels[part], classes)
    return _best(right)


def _right(x: np.ndarray, y: np.ndarray, others: np.ndarray, expected: np.ndarray, classes: int) -> np.ndarray:
    """(penalties, len(others)), of classifiers fitted to x and y."""
    mean, scale = x.mean(0), float(np.sqrt(np.mean(x.var(0)))) or 1.0
    fitted = logistic((x - mean) / scale, y, classes, SETTINGS)
    return np.stack([predict(weights, (others - mean) / scale).argmax(-1) == expected for weights, _ in fitted])


def _best(right: np.ndarray) -> np.ndarray:
    return right[right.mean(axis=1).argmax()]


def _parts(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Masks (N,) of parts that are equally large and have their share of each class."""
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    number = np.empty(len(labels), np.int64)
    number[order] = np.arange(len(labels)) % FOLDS
    return (number == part for part in range(FOLDS))
