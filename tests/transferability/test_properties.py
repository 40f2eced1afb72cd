"""What the scores do not see, the bounds that their papers state, degenerate data, and what is refused."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.transferability import NEEDS, TABLE
from tljax.transferability.gbc import gbc
from tljax.transferability.h_score import h_score, regularized_h_score
from tljax.transferability.knn import knn
from tljax.transferability.linear_probe import linear_probe
from tljax.transferability.logme import logme
from tljax.transferability.source_labels import leep, nce

every = pytest.mark.parametrize("name", TABLE)


def score(name, rows, labels):
    """The score called `name`; rows of features are turned into probabilities where it needs them."""
    if NEEDS[name] == "probabilities":
        rows = np.exp(rows - rows.max(1, keepdims=True))
        rows = rows / rows.sum(1, keepdims=True)
    return lookup(TABLE, name, what="score")(rows, labels)


def samples(strength=1.5, *, count=45, width=6, classes=3, seed=0):
    """Features (N, D), of which the first tell the class, and labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    features = generator.normal(size=(count, width))
    features += strength * np.eye(classes, width)[labels]
    return features.astype(np.float32), labels


def close(value):
    return pytest.approx(value, rel=1e-6, abs=1e-9)


def test_every_score_says_what_it_needs():
    assert NEEDS.keys() == TABLE.keys() and set(NEEDS.values()) == {"features", "probabilities"}


@every
def test_scores_rise_with_what_the_features_know_of_the_class(name):
    values = [np.mean([score(name, *samples(strength, seed=seed)) for seed in range(3)]) for strength in (0, 1.5, 4)]
    assert values[0] < values[1] < values[2]


@every
def test_order_and_names_of_the_classes_do_not_matter(name):
    features, labels = samples()
    order = np.random.default_rng(1).permutation(len(labels))
    found = score(name, features, labels)
    assert isinstance(found, float)
    assert score(name, features[order], labels[order]) == close(found)
    # Other names, of which not all occur.
    assert score(name, features, np.array([70, -3, 12])[labels]) == close(found)


@every
def test_any_float_type_is_read_and_nothing_outside_is_set_to_64_bits(name):
    features, labels = samples()
    half = features.astype(ml_dtypes.bfloat16)
    expected = score(name, half.astype(np.float64), labels)
    assert score(name, half.astype(np.float32), labels) == close(expected)
    if NEEDS[name] == "features":
        assert score(name, jnp.asarray(half), jnp.asarray(labels)) == close(expected)
    assert not jax.config.jax_enable_x64 and jnp.ones(1).dtype == jnp.float32


# --- what the papers state


def test_the_h_score_does_not_see_a_map_that_can_be_undone():
    features, labels = samples()
    matrix = np.random.default_rng(2).normal(size=(6, 6)) * np.logspace(0, 3, 6)
    assert h_score(features @ matrix + 7, labels) == pytest.approx(h_score(features, labels), rel=1e-5)
    assert 0 < h_score(features, labels) < 2
    # A feature that never varies is no feature, and one that is the class has all of the score.
    constant = np.full((len(labels), 1), 0.1, np.float32)
    assert h_score(np.hstack([features, constant]), labels) == close(h_score(features, labels))
    assert h_score(np.eye(3)[labels], labels) == close(2)


def test_with_more_features_than_examples_only_the_regularised_h_score_tells_anything():
    features, labels = samples(3.0, width=200)
    generator = np.random.default_rng(3)
    chance = [generator.permutation(labels) for _ in range(20)]
    assert h_score(features, labels) == close(2) == h_score(features, chance[0])
    by_chance = [regularized_h_score(features, shuffled) for shuffled in chance]
    assert 0 < max(by_chance) < regularized_h_score(features, labels) < 2


def test_labels_at_random_have_an_h_score_that_grows_with_the_features():
    generator = np.random.default_rng(8)
    features = generator.normal(size=(45, 6))
    found = [h_score(features, generator.permutation(samples()[1])) for _ in range(200)]
    # Of 44 dimensions of centred functions the features span 6 and the classes 2, at random to each other.
    assert abs(np.mean(found) - 6 * 2 / 44) < 3 * np.std(found) / np.sqrt(len(found))


@pytest.mark.parametrize("name", ("regularized_h_score", "gbc", "knn", "linear_probe", "logme"))
def test_rotations_and_scales_do_not_matter_nor_shifts_but_to_logme(name):
    features, labels = samples()
    features = features.astype(np.float64)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))[0]
    found = score(name, features, labels)
    assert score(name, 30 * features @ turn, labels) == close(found)
    if name == "logme":
        assert score(name, features + 5, labels) != pytest.approx(found, rel=1e-3)
    else:
        assert score(name, features + 5, labels) == close(found)


def test_leep_lies_above_what_the_likeliest_class_of_the_source_says():
    for strength in (0.0, 1.0, 6.0):
        logits, labels = samples(strength)
        theta = np.asarray(jax.nn.softmax(logits)).astype(np.float64)
        # Property 2 of the paper: of the sum over the source's classes one term is kept.
        joint = np.stack([theta[labels == y].sum(0) for y in range(3)])
        kept = (joint / joint.sum(0))[labels, theta.argmax(1)] * theta.max(1)
        assert 0 >= leep(theta, labels) >= np.mean(np.log(kept)) - 1e-9
        assert nce(theta, labels) <= 0
    # With the frequencies of the likeliest classes, as NCE has them, in place of P(y | z) it does not hold.
    assert leep(theta, labels) < nce(theta, labels) + np.mean(np.log(theta.max(1)))
    certain = np.eye(6)[logits.argmax(1)]
    assert leep(certain, labels) == close(nce(theta, labels))
    # A head that says the same of everything knows nothing: what is left is the entropy of the labels.
    same = np.tile(theta[:1], (len(labels), 1))
    shares = np.bincount(labels) / len(labels)
    assert leep(same, labels) == close(np.sum(shares * np.log(shares))) == nce(same, labels)
    assert leep(theta[:, [3, 1, 0, 2, 5, 4]], labels) == close(leep(theta, labels))


def test_gbc_goes_from_all_pairs_to_none():
    generator = np.random.default_rng(6)
    rows = np.repeat(generator.normal(size=(1, 20, 4)), 3, axis=0).reshape(60, 4)
    labels = np.repeat(np.arange(3), 20)
    assert gbc(rows, labels) == close(-6)
    assert gbc(rows + 100 * labels[:, None], labels) == close(0)
    assert gbc(rows, labels, components=99) == gbc(rows, labels, components=4)


# --- degenerate data


@every
def test_one_example_of_a_class_and_many_classes_are_no_trouble(name):
    features, labels = samples(count=60, width=12, classes=30, strength=3.0)
    labels[0] = 30
    assert np.isfinite(score(name, features, labels))
    wide = np.random.default_rng(7).normal(size=(60, 90)) * 1e-3
    wide[:, :12] += features
    assert np.isfinite(score(name, wide, labels))


@every
def test_features_that_never_vary_know_nothing(name):
    labels = samples()[1]
    # 0.1 is no binary fraction: means of it are not quite it.
    constant = np.full((len(labels), 6), 0.1, np.float32)
    entropy = np.log(3)
    expected = {
        "h_score": 0, "regularized_h_score": 0, "leep": -entropy, "nce": -entropy, "gbc": -6,
        # Equal features are one, and how it is scaled does not matter.
        "logme": logme(np.ones((len(labels), 1)), labels),
        # Left out, an example's class is the rarest: all three are as frequent.
        "linear_probe": 0, "knn": knn(np.zeros((len(labels), 1)), labels),
    }  # fmt: skip
    assert score(name, constant, labels) == close(expected[name])


def test_features_of_zeros_leave_logme_the_noise():
    labels = samples()[1]
    expected = np.mean([-0.5 * (np.log(2 * np.pi * share) + 1) for share in np.bincount(labels) / len(labels)])
    assert logme(np.zeros((45, 4)), labels) == close(expected)


def test_labels_that_are_a_linear_function_of_the_features_have_a_finite_evidence():
    labels = samples()[1]
    exact = logme(np.eye(3)[labels], labels)
    assert np.isfinite(exact) and exact > logme(*samples(4.0)) + 5


def test_features_far_from_zero_lose_no_digits_but_their_own():
    features, labels = samples(count=60)
    # A multiple of 1/64 up to 8 in size and a shift of 2¹⁵ are exact in float32.
    features = np.round(features * 64) / 64
    far = (features + 2.0**15).astype(np.float32)
    assert np.array_equal(far - np.float32(2**15), features)
    for name in ("h_score", "regularized_h_score", "gbc", "knn", "linear_probe"):
        assert score(name, far, labels) == close(score(name, features, labels)), name


# --- what is refused


def test_bad_input_is_refused_with_all_that_is_wrong():
    features, labels = samples()
    wrong = features.copy()
    wrong[3, 2] = np.nan
    with pytest.raises(UserError, match=r"1 of the features are not finite\.(.|\n)*fewer than two classes"):
        h_score(wrong, np.zeros(45, int))
    with pytest.raises(UserError, match=r"44 labels of 45 examples"):
        linear_probe(features, labels[1:])
    with pytest.raises(UserError, match=r"the labels are float64 of shape \(45,\)"):
        knn(features, labels / 1)
    with pytest.raises(UserError, match=r"the features have the shape \(45,\)"):
        logme(features[:, 0], labels)
    with pytest.raises(UserError, match=r"the features are no numbers"):
        gbc([["a"] * 2] * 45, labels)
    with pytest.raises(UserError, match=r"a target is 0 for every example"):
        logme(features, np.zeros(45))
    with pytest.raises(UserError, match=r"45 rows of features and 44 of targets"):
        logme(features, labels[1:] / 2)


def test_probabilities_are_no_logits():
    logits, labels = samples()
    with pytest.raises(UserError, match=r"a probability is -.*logits\?"):
        leep(logits, labels)
    with pytest.raises(UserError, match=r"row \d+ of the probabilities sums to 2, not to 1"):
        nce(2 * np.asarray(jax.nn.softmax(logits)), labels)


def test_options_that_are_not_known_are_named():
    features, labels = samples()
    with pytest.raises(UserError, match=r"no covariance called 'diag'. Did you mean 'diagonal'\?"):
        gbc(features, labels, covariance="diag")
    with pytest.raises(UserError, match=r"components is 0"):
        gbc(features, labels, components=0)
    with pytest.raises(UserError, match=r"no metric called 'cosinus'. Did you mean 'cosine'\?"):
        knn(features, labels, metric="cosinus")
    with pytest.raises(UserError, match=r"k is 45; with 45 examples it must be from 1 to 44"):
        knn(features, labels, k=45)
