"""Each score equals a plain NumPy, SciPy or scikit-learn computation of its definition, in float64."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tljax.transferability.gbc import gbc
from tljax.transferability.h_score import h_score, regularized_h_score
from tljax.transferability.knn import knn
from tljax.transferability.linear_probe import STRENGTHS, linear_probe
from tljax.transferability.logme import logme
from tljax.transferability.source_labels import leep, nce

CLASSES = 4
SHAPES = {"tall": (60, 8), "wide": (30, 50)}


def samples(shape=SHAPES["tall"], *, strength=1.0, shift=0.0, seed=0):
    """Features (N, D) in float32, of which the first tell the class, and labels (N,) of uneven classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(shape[0]) ** 2 // shape[0] * CLASSES // shape[0]
    features = generator.normal(size=shape) * np.linspace(0.3, 2, shape[1])
    features[:, :CLASSES] += strength * np.eye(CLASSES)[labels]
    order = generator.permutation(shape[0])
    return (features + shift).astype(np.float32)[order], labels[order]


def heads(seed=0, count=50, source=6):
    """Probabilities (N, Z) in float32 and labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    logits = generator.normal(size=(count, source)) + 2 * np.eye(source)[labels]
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32), labels


cases = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
shifts = pytest.mark.parametrize("shift", (0.0, 300.0))


def close(value):
    return pytest.approx(value, rel=1e-6)


# --- LogME


def log_evidence(features, column, alpha, beta):
    """log N(y; 0, I/β + F Fᵀ/α) / N, from the density."""
    covariance = np.eye(len(column)) / beta + features @ features.T / alpha
    sign, determinant = np.linalg.slogdet(2 * np.pi * covariance)
    assert sign == 1
    return -(determinant + column @ np.linalg.solve(covariance, column)) / 2 / len(column)


def evidence_by_search(features, column):
    """The largest evidence that a search over log α and log β finds, from the best point of a grid."""

    def lost(point):
        return -log_evidence(features, column, *np.exp(point))

    start = min(itertools.product(np.arange(-4, 22), np.arange(-1, 8, 0.5)), key=lost)
    return -minimize(lost, start, method="Nelder-Mead", options=dict(xatol=1e-5, fatol=1e-11)).fun


def evidence_by_iteration(features, column, rounds=5000):
    """The paper's fixed point (section 4), with the posterior of w from its definition."""
    alpha = beta = 1.0
    gram, width, count = features.T @ features, features.shape[1], len(column)
    for _ in range(rounds):
        covariance = np.linalg.inv(alpha * np.eye(width) + beta * gram)
        mean = beta * covariance @ features.T @ column
        effective = width - alpha * np.trace(covariance)
        alpha = effective / (mean @ mean)
        beta = (count - effective) / np.sum((features @ mean - column) ** 2)
    return log_evidence(features, column, alpha, beta)


@cases
@shifts
def test_logme_is_the_largest_evidence_of_the_gaussian_model(shape, shift):
    features, labels = samples(shape, strength=2.0, shift=shift)
    expected = [evidence_by_search(features.astype(np.float64), labels == y) for y in range(CLASSES)]
    assert logme(features, labels) == close(np.mean(expected))


def test_logme_is_where_the_iteration_of_the_paper_ends():
    features, labels = samples(strength=2.0)
    expected = [evidence_by_iteration(features.astype(np.float64), (labels == y) * 1.0) for y in range(CLASSES)]
    assert logme(features, labels) == close(np.mean(expected))


def test_logme_is_the_higher_of_two_maxima():
    # Far from 0 one direction has nearly all of the features' squares: a linear model of it alone is a local maximum.
    features, labels = samples(strength=2.0, shift=300.0)
    column = (labels == CLASSES - 1) * 1.0
    local = -minimize(
        lambda point: -log_evidence(features.astype(np.float64), column, *np.exp(point)),
        (17, 1.5),
        method="Nelder-Mead",
    ).fun
    found = logme(features, column)
    assert local + 0.05 < found == close(evidence_by_search(features.astype(np.float64), column))


def test_logme_of_a_regression_has_its_targets_as_columns():
    features, _ = samples()
    generator = np.random.default_rng(5)
    targets = features[:, :2] @ generator.normal(size=(2, 2)) + generator.normal(size=(len(features), 2))
    expected = [evidence_by_search(features.astype(np.float64), column) for column in targets.T]
    assert logme(features, targets) == close(np.mean(expected))
    assert logme(features, targets[:, 0]) == close(expected[0])


# --- H-score


def covariances(features, labels):
    """(of the features, of their class means), divided by N."""
    means = np.stack([features[labels == y].mean(0) for y in labels])
    return np.cov(features.T, bias=True), np.cov(means.T, bias=True)


@cases
@shifts
def test_the_h_score_is_the_trace_of_its_definition(shape, shift):
    features, labels = samples(shape, shift=shift)
    whole, between = covariances(features.astype(np.float64), labels)
    expected = np.trace(np.linalg.pinv(whole, rcond=1e-12) @ between)
    assert h_score(features, labels) == close(expected)


@cases
@shifts
def test_the_regularised_h_score_shrinks_as_ledoit_and_wolf(shape, shift):
    features, labels = samples(shape, shift=shift)
    features = features.astype(np.float64)
    fitted = LedoitWolf().fit(features - features.mean(0))
    assert 0.01 < fitted.shrinkage_ < 0.99
    between = covariances(features, labels)[1]
    expected = (1 - fitted.shrinkage_) * np.trace(np.linalg.solve(fitted.covariance_, between))
    assert regularized_h_score(features.astype(np.float32), labels) == close(expected)


# --- LEEP and NCE


def test_leep_is_the_likelihood_of_labels_drawn_by_way_of_the_source():
    theta, labels = heads()
    count, source = theta.shape
    theta = theta.astype(np.float64)
    theta /= theta.sum(1, keepdims=True)
    joint = [
        [sum(theta[i, z] for i in range(count) if labels[i] == y) / count for z in range(source)] for y in range(4)
    ]
    marginal = [sum(row[z] for row in joint) for z in range(source)]
    logs = [math.log(sum(joint[labels[i]][z] / marginal[z] * theta[i, z] for z in range(source))) for i in range(count)]
    assert leep(heads()[0], labels) == close(sum(logs) / count)


def test_nce_is_the_entropy_of_labels_within_each_class_of_the_source():
    theta, labels = heads()
    pairs = Counter(zip(labels.tolist(), theta.argmax(1).tolist(), strict=True))
    source = Counter(theta.argmax(1).tolist())
    expected = sum(n / len(labels) * math.log(n / source[z]) for (_, z), n in pairs.items())
    assert nce(theta, labels) == close(expected)


# --- GBC


def bhattacharyya(mean, covariance, other_mean, other_covariance):
    middle = (covariance + other_covariance) / 2
    apart = (mean - other_mean) @ np.linalg.inv(middle) @ (mean - other_mean) / 8
    determinants = [np.linalg.slogdet(c)[1] for c in (middle, covariance, other_covariance)]
    return apart + (determinants[0] - (determinants[1] + determinants[2]) / 2) / 2


@cases
@shifts
@pytest.mark.parametrize("covariance", ("spherical", "diagonal"))
def test_gbc_is_the_overlap_of_gaussians_in_principal_components(shape, shift, covariance):
    features, labels = samples(shape, shift=shift)
    reduced = PCA(5, svd_solver="full").fit_transform(features.astype(np.float64))
    gaussians = []
    for y in range(CLASSES):
        rows = reduced[labels == y]
        variances = rows.var(0) if covariance == "diagonal" else np.full(5, rows.var(0).mean())
        gaussians.append((rows.mean(0), np.diag(variances)))
    expected = -sum(math.exp(-bhattacharyya(*a, *b)) for a, b in itertools.permutations(gaussians, 2))
    assert expected < -0.01
    assert gbc(features, labels, components=5, covariance=covariance) == close(expected)


# --- nearest neighbours


@cases
@shifts
@pytest.mark.parametrize("metric", ("euclidean", "cosine"))
def test_one_nearest_neighbour_is_scikit_learns_with_each_example_left_out(shape, shift, metric):
    features, labels = samples(shape, strength=2.0, shift=shift)
    others = [np.delete(np.arange(len(labels)), i) for i in range(len(labels))]
    model = KNeighborsClassifier(1, metric=metric)
    rows = features.astype(np.float64)
    found = [model.fit(rows[kept], labels[kept]).predict(rows[[i]])[0] for i, kept in enumerate(others)]
    expected = np.mean(found == labels)
    assert 0.3 < expected < 1
    assert knn(features, labels, metric=metric) == close(expected)


@cases
def test_of_classes_with_as_many_neighbours_the_nearest_counts(shape):
    features, labels = samples(shape, strength=2.0)
    rows = features.astype(np.float64)
    _, nearest = NearestNeighbors(n_neighbors=7).fit(rows).kneighbors(rows)
    # A counter lists equally frequent classes in the order in which they came. The nearest of all is the row itself.
    votes = [Counter(labels[row[1:]].tolist()).most_common() for row in nearest]
    assert any(len(vote) > 1 and vote[0][1] == vote[1][1] for vote in votes)
    expected = np.mean([vote[0][0] for vote in votes] == labels)
    assert knn(features, labels, k=6) == close(expected)


# --- linear probe


@cases
@shifts
def test_the_linear_probe_is_ridge_regression_fitted_to_all_others(shape, shift):
    features, labels = samples(shape, shift=shift)
    rows, targets = features.astype(np.float64), np.eye(CLASSES)[labels]
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    scale = values[values > 1e-10 * values[0]].mean()
    results = []
    for strength in STRENGTHS:
        model = Ridge(alpha=strength * scale, solver="svd")
        others = [np.delete(np.arange(len(labels)), i) for i in range(len(labels))]
        found = np.stack([model.fit(rows[k], targets[k]).predict(rows[[i]])[0] for i, k in enumerate(others)])
        results.append((np.mean((found - targets) ** 2), np.mean(found.argmax(1) == labels)))
    error, expected = min(results)
    assert 0.3 < expected < 1 and len({accuracy for _, accuracy in results}) > 2
    assert linear_probe(features, labels) == close(expected)
    chosen = RidgeClassifierCV([strength * scale for strength in STRENGTHS]).fit(rows, labels).alpha_
    assert chosen == close(STRENGTHS[[e for e, _ in results].index(error)] * scale)
