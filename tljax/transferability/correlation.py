"""How well scores rank models: their correlation with what the models came to after training."""

from collections.abc import Callable, Sequence

import numpy as np

from tljax.base.errors import UserError


def weighted_tau(scores: Sequence[float], results: Sequence[float]) -> float:
    """Kendall's τ with weights: that the best models are in order counts most (Vigna 2015).

    A pair of models weighs 1 / (r + 1) + 1 / (s + 1), r and s their ranks from 0 for the best: hyperbolic and additive,
    as the literature on transferability does it (You et al. 2021). There are two rankings to take them from, by the
    scores and by the results; the value is the mean of both, which is what SciPy's `weightedtau` does when it is
    not told a ranking.

    Args:
      scores: (M,), of M models.
      results: (M,), their accuracies after training.

    Raises:
      UserError: the lengths differ.

    Returns:
      From −1 to 1; 0 where either side is constant, NaN where a number is not finite.
    """
    from scipy import stats

    return _correlation(stats.weightedtau, scores, results)


def pearson(scores: Sequence[float], results: Sequence[float]) -> float:
    """The linear correlation of both (M,); degenerate input as in `weighted_tau`."""
    from scipy import stats

    return _correlation(stats.pearsonr, scores, results)


def _correlation(function: Callable, scores: Sequence[float], results: Sequence[float]) -> float:
    scores, results = np.asarray(scores, np.float64), np.asarray(results, np.float64)
    if scores.shape != results.shape or scores.ndim != 1:
        raise UserError(
            f"Scores of shape {scores.shape} and results of shape {results.shape} are not of the same models."
        )
    if not (np.isfinite(scores).all() and np.isfinite(results).all()):
        return float("nan")
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(results) == 0:
        return 0.0
    return float(function(scores, results).statistic)
