"""The probe against scikit-learn, and its few-shot draws."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tljax.base.errors import UserError
from tljax.train import heads
from tljax.train.heads import Heads, drawn, orders, train_heads
from tljax.train.probe import Probe, candidates, draws, logistic, predict, standardized


@pytest.mark.parametrize(("C", "classes"), [(1.0, 5), (0.1, 2), (30.0, 3)])
def test_weights_equal_scikit_learns(C, classes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 20)).astype(np.float32)
    y = (x[:, :classes] + generator.normal(size=(300, classes))).argmax(1)
    ((weights, info),) = logistic(x, y, classes, Probe(C=C, tolerance=1e-6))
    reference = LogisticRegression(C=C, max_iter=5000, tol=1e-8).fit(x, y)
    assert info["iterations"] < 1000
    np.testing.assert_allclose(predict(weights, x)[:, 1:], reference.predict_proba(x)[:, 1:], atol=2e-3)
    if classes > 2:
        np.testing.assert_allclose(weights["kernel"], reference.coef_.T, atol=5e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_wide_features_far_from_zero_have_scikit_learns_weights_too(classes):
    # Fewer examples than features; features that do not vary; a mean that is much larger than the deviation.
    generator = np.random.default_rng(2)
    x = generator.normal(5.0, 1.0, (30, 80)).astype(np.float32)
    x[:, :10] = 3.0
    y = np.arange(30) % classes
    ((weights, info),) = logistic(x, y, classes, Probe(C=1.0, tolerance=1e-6))
    reference = LogisticRegression(C=1.0, max_iter=20000, tol=1e-10).fit(x.astype(np.float64), y)
    assert info["iterations"] < 1000
    np.testing.assert_allclose(predict(weights, x)[:, 1:], reference.predict_proba(x)[:, 1:], atol=2e-3)
    if classes > 2:
        np.testing.assert_allclose(weights["kernel"], reference.coef_.T, atol=5e-3)
    np.testing.assert_allclose(np.asarray(weights["kernel"])[:10], 0, atol=1e-6)


def test_features_that_tell_nothing_leave_the_shares_of_the_classes():
    x, y = np.full((12, 5), 2.0, np.float32), np.array([0] * 6 + [1] * 4 + [2] * 2)
    ((weights, _),) = logistic(x, y, 3, Probe(C=1.0, tolerance=1e-6))
    assert not np.asarray(weights["kernel"]).any()
    np.testing.assert_allclose(predict(weights, x), [[1 / 2, 1 / 3, 1 / 6]] * 12, atol=1e-4)


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


def data(classes=4, count=240, width=12):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(count, width)).astype(np.float32)
    return x, (x[:, :classes] + 0.5 * generator.normal(size=(count, classes))).argmax(1)


def test_a_path_of_penalties_ends_where_single_fits_do():
    x, y = data()
    found = candidates(Probe(C=(10.0, 0.01, 1.0), tolerance=1e-6), x, y, 4)
    assert [each.name for each in found] == ["C = 0.01", "C = 1", "C = 10"]
    for each, c in zip(found, (0.01, 1.0, 10.0), strict=True):
        ((alone, _),) = logistic(x, y, 4, Probe(C=c, tolerance=1e-6))
        np.testing.assert_allclose(each.weights["kernel"], alone["kernel"], atol=5e-3)
    assert found[2].fit["iterations"] <= logistic(x, y, 4, Probe(C=10.0, tolerance=1e-6))[0][1]["iterations"] + 2


@pytest.mark.parametrize("count", [240, 8])
def test_ridge_equals_scikit_learns(count):
    from sklearn.linear_model import Ridge

    x, y = data(count=count)
    for each, c in zip(candidates(Probe(solver="ridge", C=(0.1, 5.0)), x, y, 4), (0.1, 5.0), strict=True):
        reference = Ridge(alpha=1 / c).fit(x.astype(np.float64), np.eye(4)[y])
        np.testing.assert_allclose(each.weights["kernel"], reference.coef_.T, atol=1e-5)
        np.testing.assert_allclose(each.weights["bias"], reference.intercept_, atol=1e-5)


def test_heads_that_train_together_are_those_that_train_alone():
    x, y = data()
    grid = Heads(learning_rates=(1e-2, 1e-1), decays=(0.0, 0.1), shots=(None, 5), steps=40, batch_size=32)
    together = train_heads(grid, x, y, 4, seed=3)
    assert len(together) == 8 and together[3][0] == "rate 0.01, decay 0.1, shots 5"
    for i, (rate, decay, shots) in enumerate(itertools.product((1e-2, 1e-1), (0.0, 0.1), (None, 5))):
        alone = grid._replace(learning_rates=(rate,), decays=(decay,), shots=(shots,))
        ((_, weights, _),) = train_heads(alone, x, y, 4, seed=3)
        np.testing.assert_allclose(together[i][1]["kernel"], weights["kernel"], atol=1e-5)


def test_a_head_is_trained_by_adamw_on_its_own_labels():
    """One head against torch's AdamW on the same batches, of which only the drawn examples count."""
    import torch

    x, y = data()
    steps, rate, decay = 25, 0.05, 0.1
    grid = Heads(learning_rates=(rate,), decays=(decay,), seeds=(7,), shots=(30,), steps=steps, batch_size=60)
    ((_, weights, _),) = train_heads(grid, x, y, 4, seed=2)
    kernel = torch.tensor(0.02 * np.asarray(jax.random.normal(jax.random.key(7), (12, 4))), requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": [kernel], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}], lr=rate
    )
    used = drawn(y, 30, 7)
    assert np.bincount(y[used > 0]).tolist() == [min(30, n) for n in np.bincount(y)]
    for step, rows in enumerate(orders(len(y), 60, steps, 2)):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        rows = rows[used[rows] > 0]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.tensor(x[rows]) @ kernel + bias, torch.tensor(y[rows])).backward()
        optimizer.step()
    np.testing.assert_allclose(weights["kernel"], kernel.detach().numpy(), atol=2e-4)
    np.testing.assert_allclose(weights["bias"], bias.detach().numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (Probe(solver="logistik"), "Did you mean 'logistic'"),
        (Probe(C=(1.0, 0.0)), "must be a number above 0, or several"),
        (Probe(heads={"steps": 3}), "belongs to the solver 'heads'"),
        (Probe(solver="heads", heads={"learning_rates": 0.1}), "learning_rates is 0.1; it must be several values"),
        (Probe(solver="heads", heads={"learning_rate": (0.1,)}), "Did you mean 'learning_rates'"),
    ],
    ids=str,
)
def test_mistakes_in_the_section_are_said(probe, message):
    with pytest.raises(UserError, match=message):
        candidates(probe, *data(), 4)


def test_heads_in_blocks_are_those_of_one_block(monkeypatch):
    x, y = data()
    grid = Heads(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1), decays=(0.01,), steps=20, batch_size=64)
    whole = train_heads(grid, x, y, 4)
    # Two heads at a time: three blocks for five heads, the last one filled up.
    monkeypatch.setattr(heads, "BLOCK", 2 * x.shape[1] * 4 * x.dtype.itemsize)
    heads._train.clear_cache()
    parts = train_heads(grid, x, y, 4)
    heads._train.clear_cache()
    assert [name for name, _, _ in parts] == [name for name, _, _ in whole]
    for (_, ours, fit), (_, wanted, wanted_fit) in zip(parts, whole, strict=True):
        assert fit["loss"] == pytest.approx(wanted_fit["loss"], rel=1e-5)
        for name, leaf in wanted.items():
            np.testing.assert_allclose(ours[name], leaf, atol=1e-5)
