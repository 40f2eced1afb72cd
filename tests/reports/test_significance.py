"""Intervals and tests, against SciPy and against what is known of small cases."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tljax.reports.significance import (
    bootstrap_of_counts,
    difference,
    holm,
    mean_of,
    over_examples,
    over_seeds,
    wilson,
)


def test_the_paired_interval_is_that_of_scipy():
    a, b = [0.834, 0.842, 0.781], [0.741, 0.755, 0.712]
    gap, oracle = difference(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([gap.low, gap.high], [oracle.low, oracle.high], rtol=1e-9)
    assert gap.spread == pytest.approx(np.std(np.subtract(a, b), ddof=1))


def test_the_unpaired_interval_is_welchs():
    a, b = [0.8, 0.9, 0.85, 0.7], [0.5, 0.6, 0.66]
    gap, oracle = difference(a, b), stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([gap.low, gap.high], [oracle.low, oracle.high], rtol=1e-9)


@pytest.mark.parametrize("values", [([1.0, 1.0], [0.5, 0.5]), ([1.0, 1.0, 1.0], [0.5, 0.5])])
def test_rows_without_any_spread_are_certain(values):
    gap = difference(*values)
    assert (gap.low, gap.high, gap.clear) == (0.5, 0.5, True)


def test_a_single_run_has_no_interval_and_no_test():
    gap = difference([1.0], [0.5, 0.6])
    assert math.isnan(gap.low) and not gap.clear
    assert math.isnan(mean_of([1.0]).low)
    assert math.isnan(over_seeds([1.0], [0.5]).p)


def test_a_mean_has_students_interval():
    values = [0.81, 0.84, 0.86, 0.79]
    oracle = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose(mean_of(values)[:3], [np.mean(values), *oracle], rtol=1e-12)


def test_few_seeds_are_tested_by_t_and_many_by_signed_ranks():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.9, 0.02, 12), generator.normal(0.88, 0.02, 12)
    few = over_seeds(a[:3], b[:3])
    assert few.name.startswith("paired t") and few.p == pytest.approx(stats.ttest_rel(a[:3], b[:3]).pvalue)
    many = over_seeds(a, b)
    assert many.name.startswith("Wilcoxon") and many.p == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert over_seeds(a[:6], b[:6]).name.startswith("Wilcoxon"), "2 / 2⁶ is below 0.05"
    assert over_seeds(a[:6], b[:6], comparisons=2).name.startswith("paired t"), "twice that is not"


def test_seeds_that_agree_exactly_are_told_from_those_that_do_not_differ():
    assert over_seeds([0.5, 0.75], [0.25, 0.5]).p == 0.0
    assert over_seeds([0.5, 0.75], [0.5, 0.75]).p == 1.0


def test_the_bootstrap_over_examples_has_the_normal_interval_where_that_holds():
    generator = np.random.default_rng(1)
    a, b = generator.random((3, 2000)) < 0.8, generator.random((3, 2000)) < 0.75
    found, gaps = over_examples(a, b), (a.astype(float) - b).mean(0)
    reach = 1.96 * gaps.std(ddof=1) / math.sqrt(2000)
    assert found.mean == pytest.approx(gaps.mean()) and found.n == 2000
    np.testing.assert_allclose([found.low, found.high], [gaps.mean() - reach, gaps.mean() + reach], atol=0.0015)
    assert found.p == pytest.approx(2 * stats.norm.sf(gaps.mean() / (reach / 1.96)), abs=0.01)


def test_equal_answers_are_no_difference():
    right = np.arange(50) % 3 > 0
    assert over_examples([right], [right]).p == 1.0


def test_the_bootstrap_rejects_as_often_as_it_should_where_nothing_differs():
    generator = np.random.default_rng(2)
    rejected = [over_examples(*(generator.random((2, 1, 150)) < 0.7)).p < 0.05 for _ in range(200)]
    assert 2 <= sum(rejected) <= 20


def test_holms_correction_is_that_of_its_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.6])[0] == 1.0 and math.isnan(holm([0.5, math.nan, 0.6])[1])
    assert holm([]) == []
    for p in itertools.permutations((0.001, 0.02, 0.3)):
        assert holm(p) == pytest.approx([{0.001: 0.003, 0.02: 0.04, 0.3: 0.3}[each] for each in p])


@pytest.mark.parametrize(("right", "count"), [(0, 10), (9, 10), (10, 10), (480, 500)])
def test_wilsons_interval_is_that_of_scipy(right, count):
    oracle = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(right, count), [oracle.low, oracle.high], atol=1e-12)


@pytest.mark.parametrize("metric", ["macro_f1", "matthews"])
def test_drawing_cells_is_drawing_examples(metric):
    from sklearn import metrics

    counts = [[40, 6, 2], [3, 30, 5], [1, 4, 20]]
    pairs = np.array([(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)])
    generator, drawn = np.random.default_rng(3), []
    for _ in range(600):
        true, said = pairs[generator.integers(0, len(pairs), len(pairs))].T
        score = metrics.f1_score(true, said, average="macro") if metric == "macro_f1" else None
        drawn.append(metrics.matthews_corrcoef(true, said) if score is None else score)
    np.testing.assert_allclose(bootstrap_of_counts(counts, metric), np.quantile(drawn, [0.025, 0.975]), atol=0.02)
