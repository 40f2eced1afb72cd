"""Distances of two domains: the figures of a report against their definitions, and what they do not see."""

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from tljax import domains

# --- what a report tells


def samples(seed=0, shift=0.0, count=(60, 45), width=5):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count[0], width)), generator.normal(size=(count[1], width)) + shift


def test_the_mmd_of_a_report_equals_its_definition_and_is_unbiased():
    x, y = samples(shift=0.3)
    joined = np.concatenate([x, y])
    bandwidth = statistics.median(np.linalg.norm(a - b) for a, b in itertools.combinations(joined, 2))
    assert domains.median_bandwidth(joined) == pytest.approx(bandwidth)
    kernel = lambda a, b: math.exp(-(np.linalg.norm(a - b) ** 2) / (2 * bandwidth**2))  # noqa: E731
    within = [statistics.fmean(kernel(a, b) for a, b in itertools.permutations(z, 2)) for z in (x, y)]
    across = statistics.fmean(kernel(a, b) for a, b in itertools.product(x, y))
    assert domains.median_mmd(x, y) == pytest.approx(sum(within) - 2 * across, abs=1e-12)
    same = [domains.median_mmd(*samples(seed)) for seed in range(60)]
    # Of one distribution the mean is 0, within three standard errors, and single values are on both sides of it.
    assert abs(statistics.fmean(same)) < 3 * statistics.stdev(same) / math.sqrt(60) and min(same) < 0 < max(same)
    assert domains.median_mmd(*samples(shift=2.0)) > 0.3 > max(same)
    assert domains.median_bandwidth(np.ones((4, 2))) == 1


def test_the_proxy_a_distance_goes_from_0_to_2():
    assert domains.proxy_a_distance(*samples(shift=6.0)) == 2
    assert domains.proxy_a_distance(*samples(count=(400, 300))) < 0.25
    some = domains.proxy_a_distance(*samples(shift=0.6, count=(4000, 1000)))
    # Two normals that are d apart: the best classifier errs with probability Φ(−d / 2).
    error = scipy.stats.norm.cdf(-0.6 * math.sqrt(5) / 2)
    assert some == pytest.approx(2 * (1 - 2 * error), abs=0.08)
    # More columns than rows: a classifier that was fitted to the rows would tell all of them apart.
    assert domains.proxy_a_distance(*samples(width=400)) < 0.6


def test_the_probability_of_a_row_is_not_fitted_to_that_row():
    x, y = samples(shift=0.5, count=(20, 30))
    rows, domain = np.concatenate([x, y]), np.repeat([0, 1], [20, 30])
    found = domains.domain_probabilities(rows, domain, folds=5, seed=3, strength=0.5)
    for kept, held in StratifiedKFold(5, shuffle=True, random_state=3).split(rows, domain):
        mean, deviation = rows[kept].mean(0), rows[kept].std(0)
        weight = len(kept) / (2 * np.bincount(domain[kept]))[domain[kept]]
        model = LogisticRegression(C=0.5, max_iter=1000)
        model.fit((rows[kept] - mean) / deviation, domain[kept], sample_weight=weight)
        np.testing.assert_allclose(found[held], model.predict_proba((rows[held] - mean) / deviation)[:, 1], atol=1e-4)


def test_cka_equals_its_kernel_form_and_does_not_see_rotation_scale_or_shift():
    generator = np.random.default_rng(0)
    for count, widths in ((50, (4, 7)), (10, (30, 20))):
        x, y = (generator.normal(size=(count, width)) for width in widths)
        centre = np.eye(count) - 1 / count
        k, m = (centre @ z @ z.T @ centre for z in (x, y))
        expected = np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))
        assert domains.linear_cka(x, y) == pytest.approx(expected)
        turn = np.linalg.qr(generator.normal(size=(widths[0],) * 2))[0]
        assert domains.linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert math.isnan(domains.linear_cka(np.full((5, 2), 0.1, np.float32), x[:5]))


def test_the_effective_rank_and_the_spread_tell_a_collapse():
    generator = np.random.default_rng(0)
    flat = np.linalg.qr(generator.normal(size=(40, 6)))[0]
    flat = np.linalg.qr(flat - flat.mean(0))[0]  # centred and orthonormal: six equal singular values
    assert domains.effective_rank(flat + 7) == pytest.approx(6)
    line = np.outer(generator.normal(size=40), np.ones(6))
    assert domains.effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert domains.spread(generator.normal(size=(2000, 8))) == pytest.approx(1, abs=0.01)
    assert domains.spread(flat + 1000) < 1e-3
    still = np.full((9, 3), 0.1, np.float32)
    assert domains.effective_rank(still) == 0 and domains.spread(still) < 1e-6 and domains.spread(0 * still) == 0
