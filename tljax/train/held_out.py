"""How often simple classifiers are right on examples that they were not fitted to: a linear one, nearest neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tljax.train.probe import Probe, logistic, predict

FOLDS = 5
SETTINGS = Probe(C=(1e-3, 1e-2, 1e-1, 1.0), max_iterations=200, tolerance=1e-3)
"""Penalties for features whose columns have a mean variance of 1. What is asked is which example is right, and for that
a solver may stop early."""


class Right(NamedTuple):
    """Which examples a classifier is right on that it was not fitted to, (N,) bool each, the same ones.

    Attributes:
      linear: multinomial logistic regression, with the penalty of `SETTINGS` that is right most often; being the best
        of a few on the same examples flatters it a little.
      neighbour: the nearest example (Euclidean).
    """

    linear: np.ndarray
    neighbour: np.ndarray

    @property
    def better(self) -> np.ndarray:
        """Of the two, what is right more often."""
        return max(self, key=np.mean)


def held_out_right(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Right:
    """Which examples simple classifiers are right on: those of `validation`, or else all, by cross-validation.

    All columns are shifted, and scaled by one factor.

    Args:
      features: (N, D).
      labels: (N,), integers below `classes`.
      classes: Y.
      validation: (features (M, D), labels (M,)).
      seed: of the stratified cross-validation in `FOLDS` parts.
    """
    if validation is not None:
        return _best(_right(features, labels, *validation, classes))
    right = np.zeros((len(SETTINGS.strengths()) + 1, len(labels)), bool)
    for part in _parts(labels, seed):
        right[:, part] = _right(features[~part], labels[~part], features[part], labels[part], classes)
    return _best(right)


def _right(x: np.ndarray, y: np.ndarray, others: np.ndarray, expected: np.ndarray, classes: int) -> np.ndarray:
    """(penalties + 1, len(others)), of classifiers fitted to x and y; the last row is that of the nearest neighbour."""
    from sklearn.neighbors import KNeighborsClassifier

    mean, scale = x.mean(0), float(np.sqrt(np.mean(x.var(0)))) or 1.0
    x, others = (x - mean) / scale, (others - mean) / scale
    found = [predict(weights, others).argmax(-1) for weights, _ in logistic(x, y, classes, SETTINGS)]
    found.append(KNeighborsClassifier(1, algorithm="brute").fit(x, y).predict(others))
    return np.stack(found) == expected


def _best(right: np.ndarray) -> Right:
    *linear, neighbour = right
    return Right(max(linear, key=np.mean), neighbour)


def _parts(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Masks (N,) of parts that are equally large and have their share of each class."""
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    number = np.empty(len(labels), np.int64)
    number[order] = np.arange(len(labels)) % FOLDS
    return (number == part for part in range(FOLDS))
