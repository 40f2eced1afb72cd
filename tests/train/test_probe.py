"""The probe against scikit-learn, and its few-shot draws."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tljax.base.errors import UserError
from tljax.train.probe import Probe, draws, fit, predict, standardized


@pytest.mark.parametrize(("C", "classes"), [(1.0, 5), (0.1, 2), (30.0, 3)])
def test_weights_equal_scikit_learns(C, classes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 20)).astype(np.float32)
    y = (x[:, :classes] + generator.normal(size=(300, classes))).argmax(1)
    weights, info = fit(x, y, classes, Probe(C=C, tolerance=1e-6))
    reference = LogisticRegression(C=C, max_iter=5000, tol=1e-8).fit(x, y)
    assert info["iterations"] < 1000
    np.testing.assert_allclose(predict(weights, x)[:, 1:], reference.predict_proba(x)[:, 1:], atol=2e-3)
    if classes > 2:
        np.testing.assert_allclose(weights["kernel"], reference.coef_.T, atol=5e-3)


def test_mteb_draws_shuffle_one_list_again_and_again():
    labels = np.repeat(np.arange(4), 25)
    found = draws(Probe(shots=3, repeats=3, sampler="mteb"), labels, seed=7)
    order = np.arange(100)
    for rows in found:
        np.random.RandomState(42).shuffle(order)
        counts = dict.fromkeys(range(4), 0)
        expected = []
        for i in order:
            if counts[labels[i]] < 3:
                counts[labels[i]] += 1
                expected.append(i)
        assert sorted(rows) == sorted(expected)
    assert len({tuple(sorted(rows)) for rows in found}) == 3


def test_stratified_draws_are_balanced_and_depend_on_the_seed():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    one, two = (draws(Probe(shots=4), labels, seed=seed)[0] for seed in (0, 1))
    assert np.bincount(labels[one]).tolist() == [4] * 5
    assert sorted(one) != sorted(two)
    np.testing.assert_array_equal(draws(Probe(), labels, seed=0)[0], np.arange(200))


def test_an_unknown_sampler_names_the_accepted_ones():
    with pytest.raises(UserError, match=r"Did you mean 'mteb'.*stratified"):
        draws(Probe(shots=1, sampler="mtab"), np.zeros(3, int), seed=0)


def test_standardized_leaves_constant_features_at_zero():
    train, test = np.array([[1.0, 5], [3, 5]]), np.array([[2.0, 5]])
    x, z = standardized(train, test)
    np.testing.assert_allclose(x, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(z, [[0, 0]])
