"""Correlations of scores and accuracies: their definition, and published ones from the published columns.

The columns are from the README of examples/model_selection in github.com/thuml/Transfer-Learning-Library: ten ImageNet
models, their accuracies after fine-tuning and their scores. Five of its eight tables are here. What it prints for
Aircraft and Pets does not follow from their columns, Pearson's correlation neither (Aircraft, H-score: 0.45 and not
0.69), and in that of DTD the column of NCE repeats LogME's.
"""

import itertools
import math

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.transferability.correlation import pearson, weighted_tau

# Accuracy, H-score, LEEP, LogME and NCE of GoogleNet, Inception V3, ResNet-50, -101, -152, DenseNet-121, -169, -201,
# MobileNet V2 and MNASNet.
CIFAR10 = """
96.2 5.911 -1.385 0.293 -1.139
97.5 6.363 -1.259 0.349 -1.060
96.8 6.567 -1.010 0.388 -1.007
97.7 6.901 -0.829 0.463 -0.838
97.9 6.945 -0.838 0.469 -0.851
97.2 6.210 -1.035 0.302 -1.006
97.4 6.547 -0.934 0.343 -0.946
97.4 6.706 -0.888 0.369 -0.866
95.7 5.928 -1.100 0.291 -1.089
96.8 6.018 -1.066 0.304 -1.086"""
CARS = """
91.0 41.47 -4.612 1.246 -4.312
92.3 73.68 -4.268 1.259 -4.110
91.7 72.94 -4.366 1.253 -4.221
91.7 73.98 -4.281 1.255 -4.218
92.0 76.17 -4.215 1.260 -4.142
91.5 45.82 -4.437 1.249 -4.271
91.5 63.40 -4.286 1.252 -4.175
91.0 70.50 -4.319 1.251 -4.151
91.0 51.12 -4.463 1.250 -4.306
88.5 51.91 -4.423 1.254 -4.338"""
SUN397 = """
62.0 71.35 -3.744 1.621 -3.055
65.7 114.21 -3.372 1.648 -2.844
64.7 110.39 -3.198 1.638 -2.894
64.8 113.63 -3.103 1.642 -2.837
66.0 116.51 -3.056 1.646 -2.822
62.3 72.16 -3.311 1.614 -2.945
63.0 95.80 -3.165 1.623 -2.903
64.7 103.09 -3.205 1.624 -2.896
60.5 75.90 -3.338 1.617 -2.968
60.7 80.91 -3.234 1.625 -2.933"""
CIFAR100 = """
83.2 29.33 -3.234 1.037 -2.751
86.6 36.47 -2.995 1.070 -2.615
84.5 40.20 -2.612 1.099 -2.516
87.0 43.80 -2.365 1.130 -2.285
87.6 44.19 -2.410 1.133 -2.369
84.8 32.13 -2.665 1.029 -2.504
85.0 37.51 -2.494 1.051 -2.418
86.0 39.75 -2.470 1.061 -2.305
80.8 30.36 -2.800 1.039 -2.653
83.9 32.05 -2.732 1.051 -2.643"""
CALTECH101 = """
91.7 75.88 -1.462 1.228 -0.665
94.3 93.73 -1.119 1.387 -0.560
91.8 91.65 -1.020 1.262 -0.616
93.1 92.54 -0.899 1.305 -0.603
93.2 92.91 -0.875 1.324 -0.605
91.9 75.02 -0.979 1.172 -0.609
92.5 86.37 -0.864 1.212 -0.580
93.4 89.90 -0.914 1.228 -0.590
89.1 75.82 -1.115 1.150 -0.693
91.5 77.00 -1.043 1.178 -0.690"""
PUBLISHED = {
    # The columns; then τ and Pearson's correlation of each score, as they are printed.
    "cifar10": (CIFAR10, (0.800, 0.638, 0.785, 0.714), (0.839, 0.604, 0.733, 0.786)),
    "cars": (CARS, (0.638, 0.703, 0.654, 0.750), (0.503, 0.433, 0.274, 0.695)),
    "sun397": (SUN397, (0.918, 0.581, 0.748, 0.873), (0.913, 0.428, 0.824, 0.782)),
    "cifar100": (CIFAR100, (0.775, 0.659, 0.790, 0.654), (0.815, 0.513, 0.698, 0.705)),
    "caltech101": (CALTECH101, (0.721, 0.127, 0.697, 0.810), (0.748, 0.324, 0.794, 0.843)),
}
published = pytest.mark.parametrize("name", PUBLISHED)


def columns(name):
    """(accuracies (10,), scores (4, 10))."""
    table = np.array([[float(x) for x in line.split()] for line in PUBLISHED[name][0].split("\n")[1:]]).T
    assert table.shape == (5, 10)
    return table[0], table[1:]


def readings(column):
    """The column; where two printed values are equal, both orders that the digits before rounding may have had."""
    (tied,) = np.nonzero([np.sum(column == value) > 1 for value in column])
    assert len(tied) in (0, 2)
    return [column + sign * 1e-6 * (np.arange(10) == tied[0]) for sign in (-1, 1)] if len(tied) else [column]


@published
def test_the_published_weighted_taus_come_out(name):
    accuracies, scores = columns(name)
    for column, expected in zip(scores, PUBLISHED[name][1], strict=True):
        found = [weighted_tau(reading, accuracies) for reading in readings(column)]
        assert min(abs(value - expected) for value in found) < 6e-4, (found, expected)


@published
def test_the_published_linear_correlations_come_out_but_for_the_rounding_of_the_columns(name):
    accuracies, scores = columns(name)
    for column, expected in zip(scores, PUBLISHED[name][2], strict=True):
        assert pearson(column, accuracies) == pytest.approx(expected, abs=6e-3)


def tau_of_one_ranking(x, y, first, second):
    """Vigna's definition, pair by pair; ranks of the largest `first`, and where that is equal `second`, on."""
    order = sorted(range(len(x)), key=lambda i: (first[i], second[i]), reverse=True)
    weigh = {i: 1 / (rank + 1) for rank, i in enumerate(order)}

    def product(a, b):
        pairs = itertools.combinations(range(len(x)), 2)
        return sum((weigh[i] + weigh[j]) * np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs)

    return product(x, y) / math.sqrt(product(x, x) * product(y, y))


@pytest.mark.parametrize("levels", (1000, 4))
def test_the_weighted_tau_is_its_definition_with_ties_too(levels):
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, levels, (2, 9)) / 7
        expected = (tau_of_one_ranking(x, y, x, y) + tau_of_one_ranking(x, y, y, x)) / 2
        assert weighted_tau(x, y) == pytest.approx(expected) == weighted_tau(y, x)


def test_the_best_models_weigh_most():
    accuracies = [1, 2, 3, 4, 5, 6]
    assert weighted_tau(accuracies, accuracies) == pytest.approx(1)
    assert weighted_tau(accuracies, accuracies[::-1]) == pytest.approx(-1)
    best_swapped, worst_swapped = [1, 2, 3, 4, 6, 5], [2, 1, 3, 4, 5, 6]
    assert weighted_tau(best_swapped, accuracies) < weighted_tau(worst_swapped, accuracies) - 0.15


@pytest.mark.parametrize("correlation", (weighted_tau, pearson))
def test_degenerate_correlations_are_defined(correlation):
    assert correlation([1, 1, 1], [1, 2, 3]) == 0 == correlation([1], [2])
    assert math.isnan(correlation([1, 2, math.nan], [1, 2, 3]))
    with pytest.raises(UserError, match=r"shape \(3,\) and results of shape \(2,\)"):
        correlation([1, 2, 3], [1, 2])
