"""Metrics equal scikit-learn's and SciPy's, and degenerate input has a value and gives no warning."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tljax import metrics

RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_classification_equals_scikit_learn():
    labels, predicted = RNG.integers(0, 3, (2, 50))
    probabilities = RNG.dirichlet(np.ones(3), 50)
    found = metrics.classification(labels, predicted, probabilities, CLASSES)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities))
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert found["classes"] == list(CLASSES)
    for row, recall in zip(found["per_class"], sk.recall_score(labels, predicted, average=None), strict=True):
        assert row["recall"] == pytest.approx(recall)
    assert sum(row["count"] for row in found["per_class"]) == 50
    json.dumps(found)


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_lower_macro_f1():
    found = metrics.classification(np.array([0, 0, 1]), np.array([0, 0, 1]), None, CLASSES)
    assert (found["accuracy"], found["macro_f1"], found["matthews"]) == (1, 1, 1)
    assert found["per_class"][2] == {"class": "owl", "precision": 0, "recall": 0, "f1": 0, "count": 0}
    assert "log_loss" not in found


@pytest.mark.parametrize(("labels", "predicted"), [([1, 1], [1, 1]), ([1, 1], [2, 2]), ([0, 1], [0, 0]), ([2], [2])])
def test_few_labels_have_defined_values(labels, predicted):
    found = metrics.classification(np.array(labels), np.array(predicted), np.eye(3)[predicted], CLASSES)
    assert all(np.isfinite(found[name]) for name in ("accuracy", "macro_f1", "matthews", "log_loss"))
    assert found["matthews"] == 0


def test_multi_label_equals_scikit_learn():
    labels, predicted = (RNG.random((2, 40, 3)) < 0.4).astype(int)
    found = metrics.multi_label(labels.astype(np.float32), predicted, CLASSES)
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert [row["count"] for row in found["per_class"]] == labels.sum(0).tolist()


def test_multi_label_without_any_label():
    found = metrics.multi_label(np.zeros((4, 3)), np.zeros((4, 3)), CLASSES)
    assert (found["subset_accuracy"], found["micro_f1"], found["macro_f1"]) == (1, 0, 0)


def test_regression_equals_scipy():
    a = RNG.integers(0, 6, 60).astype(np.float32)  # ties
    b = a + RNG.normal(size=60).astype(np.float32)
    found = metrics.regression(a, b)
    assert found["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(a, b)))


@pytest.mark.parametrize("scores", [np.ones(4), np.ones(4) + np.array([0, 1e-15, 0, 0]), np.zeros(4)])
def test_the_correlation_with_a_constant_is_zero(scores):
    found = metrics.regression(np.arange(4.0), scores)
    assert found["pearson"] == 0
    assert np.isfinite(found["spearman"])
    assert metrics.pearson(np.array([1.0]), np.array([2.0])) == 0


def test_scores_that_are_not_finite_show_as_such():
    found = metrics.regression(np.arange(3.0), np.array([0.0, np.nan, 1.0]))
    assert all(np.isnan(value) for value in found.values())


def test_bins_give_the_calibration_error_of_its_definition():
    generator = np.random.default_rng(4)
    confidence = np.concatenate([generator.uniform(0.2, 1.0, 500), [1.0, 1 / 15, 0.0]])
    right = generator.random(503) < confidence**2
    bins = metrics.calibration_bins(right, confidence)
    assert sum(row["count"] for row in bins) == 503 and all(0 <= row["bin"] < 15 for row in bins)
    expected = 0.0
    for low in np.arange(15) / 15:  # (low, low + 1/15]; the first one holds 0 too
        mine = (confidence > low) & (confidence <= low + 1 / 15 + 1e-12) | (low == 0) & (confidence == 0)
        if mine.any():
            expected += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    found = sum(row["count"] / 503 * abs(row["accuracy"] - row["confidence"]) for row in bins)
    assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("count", [1, 7, 8, 500])
def test_packed_answers_can_be_read_again(count):
    right = np.random.default_rng(count).random(count) < 0.3
    kept = metrics.packed(right)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(kept["bits"]), np.uint8))
    assert kept["count"] == count and np.array_equal(bits[:count].astype(bool), right)
