"""The linear classifier on held-out examples, beside scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tljax.train.held_out import FOLDS, SETTINGS, _parts, held_out_right


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 190)
    features = generator.normal(size=(190, 6)) + 1.2 * np.eye(6)[labels]
    return features.astype(np.float32), labels


def test_validation_is_judged_by_the_best_of_the_penalties_as_in_scikit_learn(data):
    x, y = data
    (train, there), (others, expected) = (x[:130], y[:130]), (x[130:], y[130:])
    right = held_out_right(train, there, 3, validation=(others, expected))
    mean, scale = train.mean(0), np.sqrt(np.mean(train.var(0)))
    best = max(
        LogisticRegression(C=c, max_iter=1000, tol=1e-8)
        .fit((train - mean) / scale, there)
        .score((others - mean) / scale, expected)
        for c in SETTINGS.strengths()
    )
    assert right.linear.shape == (60,) and right.linear.dtype == bool
    assert abs(right.linear.mean() - best) <= 1 / 60
    distances = ((train[:, None] - others) ** 2).sum(-1)
    assert (right.neighbour == (there[distances.argmin(0)] == expected)).all()
    assert right.better.mean() == max(right.linear.mean(), right.neighbour.mean())


def test_cross_validation_holds_every_example_out_once(data):
    x, y = data
    parts = np.stack(list(_parts(y, 0)))
    assert parts.shape == (FOLDS, 190) and (parts.sum(0) == 1).all()
    for label in range(3):
        shares = [(y[part] == label).sum() for part in parts]
        assert max(shares) - min(shares) <= 1
    assert 0.6 < held_out_right(x, y, 3).linear.mean() < 0.95
    shuffled = np.random.default_rng(1).permutation(y)
    assert held_out_right(x, shuffled, 3).better.mean() < 0.55, "nothing can be learnt of labels drawn at random"


def test_shift_and_scale_change_nothing(data):
    x, y = data
    moved, still = held_out_right(100 * x + 7, y, 3), held_out_right(x, y, 3)
    assert (moved.linear == still.linear).mean() > 0.98 and (moved.neighbour == still.neighbour).mean() > 0.98
