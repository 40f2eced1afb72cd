"""Is A better than B? Means with intervals, paired tests over seeds and over examples, correction for several tests."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
RESAMPLES = 9999


class Mean(NamedTuple):
    """A mean over `n` runs with the ends of Student's 95 % interval; NaN where there is one run."""

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """How far one row is ahead of another.

    Attributes:
      mean: of the first minus mean of the second, positive where the first has the larger values.
      spread: standard deviation of the paired differences, or of the difference where runs are not paired; NaN where
        it is unknown.
      low, high: the ends of the 95 % interval of the mean difference; NaN where it is unknown.
    """

    mean: float
    spread: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class Test(NamedTuple):
    """A two-sided test of a mean difference.

    Attributes:
      name: of the test.
      n: pairs.
      mean, low, high: the mean difference and its 95 % interval; NaN where it is unknown.
      p: probability of a difference at least as large where there is none; NaN where there are too few pairs.
    """

    __test__ = False  # no test of pytest's

    name: str
    n: int
    mean: float
    low: float
    high: float
    p: float


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of the values, one a run, with Student's interval."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Mean(mean, math.nan, math.nan, n)
    reach = _reach(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Mean(mean, mean - reach, mean + reach, n)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean difference between two rows of values, with Student's 95 % interval.

    Equal numbers of values are taken as pairs (the same seed draws the same data); otherwise the interval is Welch's
    (1947), without the assumption of equal variances.
    """
    mean = statistics.fmean(first) - statistics.fmean(second)
    if len(first) < 2 or len(second) < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    if len(first) == len(second):
        spread = statistics.stdev(a - b for a, b in zip(first, second, strict=True))
        error, freedom = spread / math.sqrt(len(first)), len(first) - 1
    else:
        parts = [statistics.variance(values) / len(values) for values in (first, second)]
        error, spread = math.sqrt(sum(parts)), math.sqrt(statistics.variance(first) + statistics.variance(second))
        # Welch and Satterthwaite; two rows without any variance are certain whatever the degrees of freedom.
        below = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
        freedom = sum(parts) ** 2 / below if below else 1.0
    reach = _reach(freedom) * error
    return Difference(mean, spread, mean - reach, mean + reach)


def over_seeds(first: Sequence[float], second: Sequence[float], *, comparisons: int = 1) -> Test:
    """Whether the first row is better than the second with other seeds too; the values are pairs.

    Wilcoxon's signed ranks (1945), which assume no normal distribution, where there are enough pairs for them to reach
    the level at all: n pairs have no p below 2^(1 − n). With fewer pairs Student's paired t.

    Args:
      first, second: one value a seed, in the same order of seeds.
      comparisons: how many tests share the level.
    """
    from scipy import stats

    gap, n = difference(first, second), len(first)
    if n < 2:
        return Test("one seed", n, gap.mean, math.nan, math.nan, math.nan)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if 2.0 ** (1 - n) * comparisons <= LEVEL and any(differences):
        p = float(stats.wilcoxon(differences, method="auto").pvalue)
        return Test("Wilcoxon's signed ranks over seeds", n, gap.mean, gap.low, gap.high, p)
    if gap.spread == 0:
        p = 0.0 if gap.mean else 1.0
    else:
        p = float(2 * stats.t.sf(abs(gap.mean) / (gap.spread / math.sqrt(n)), n - 1))
    return Test("paired t over seeds", n, gap.mean, gap.low, gap.high, p)


def over_examples(first: Any, second: Any) -> Test:
    """Whether the first row is better than the second on other examples too: a paired bootstrap (Koehn 2004).

    Args:
      first, second: (S, N), what each run of S seeds scores on each of N examples, the same in both.

    Returns:
      a test of the mean over seeds, whose pairs are the examples.
    """
    import numpy as np

    gaps = np.mean(np.asarray(first, np.float64) - np.asarray(second, np.float64), axis=0)
    # Examples with equal gaps are alike: drawing how often each gap comes is drawing the examples.
    values, counts = np.unique(gaps, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(gaps), counts / len(gaps), size=RESAMPLES) @ values / len(gaps)
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    # Sums of thirds miss zero by rounding.
    tails = min(int(np.sum(drawn <= 1e-12)), int(np.sum(drawn >= -1e-12)))
    p = min(1.0, 2 * (1 + tails) / (RESAMPLES + 1))
    return Test("paired bootstrap over examples", len(gaps), float(gaps.mean()), float(low), float(high), p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); NaN stays NaN and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    corrected, largest = list(values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def wilson(right: float, count: int) -> tuple[float, float]:
    """The ends of Wilson's (1927) 95 % interval of a share, `right` of `count` examples."""
    z2 = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    share = right / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _reach(freedom: float) -> float:
    """Student's 97.5 % quantile."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def bootstrap_of_counts(counts: Sequence[Sequence[int]], metric: str) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of a metric over examples, from a confusion matrix.

    Drawing the cells anew, as often as there are examples, is drawing the examples anew.

    Args:
      counts: rows are true classes.
      metric: "macro_f1", over the classes that occur, or "matthews" (Gorodkin 2004).
    """
    import numpy as np

    table = np.asarray(counts, np.float64)
    size, total = table.shape[0], int(table.sum())
    draws = min(RESAMPLES, max(999, 20_000_000 // table.size))  # 160 MB at most, below 140 classes
    drawn = np.random.default_rng(0).multinomial(total, table.ravel() / total, size=draws)
    drawn = drawn.reshape(-1, size, size).astype(np.float64)
    right, true, said = np.trace(drawn, axis1=1, axis2=2), drawn.sum(2), drawn.sum(1)
    if metric == "macro_f1":
        f1 = 2 * np.diagonal(drawn, axis1=1, axis2=2) / np.maximum(true + said, 1)
        values = f1.sum(1) / np.sum(true + said > 0, axis=1)
    else:
        above = right * total - np.sum(true * said, axis=1)
        below = np.sqrt((total**2 - np.sum(said**2, 1)) * (total**2 - np.sum(true**2, 1)))
        values = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
