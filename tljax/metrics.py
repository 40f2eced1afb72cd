"""Metrics over a whole split, on the host, by scikit-learn and SciPy.

Degenerate input has a defined value and gives no warning: a score that is 0/0 counts 0, as does a correlation with a
constant. Each function returns a flat dict of floats, and tables beside them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification(
    labels: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    """How well single labels are predicted.

    Args:
      labels: (B,), integers below Y.
      predicted: (B,), integers below Y.
      probabilities: (B, Y), rows that sum to 1, or None.
      classes: Y names.

    Returns:
      `accuracy`; `macro_f1`, the mean of F1 over the classes that occur in `labels` or `predicted`; `matthews`, the
      correlation coefficient, 0 where it is 0/0 (Gorodkin 2004); with probabilities, `log_loss` in nats. Tables:
      `per_class` (rows of class, precision, recall, f1, count), `confusion` (rows are true classes), `classes`,
      `right` (see `packed`), and with probabilities `calibration` (see `calibration_bins`).
    """
    from sklearn import metrics

    labels, predicted = np.asarray(labels), np.asarray(predicted)
    every = np.arange(len(classes))
    confusion = metrics.confusion_matrix(labels, predicted, labels=every)
    precision, recall, f1, count = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0.0
    )
    occurring = (confusion.sum(0) + confusion.sum(1)) > 0
    # With one label everywhere the coefficient is 0/0, which scikit-learn reports with a warning.
    several = occurring.sum() > 1
    result: dict[str, Any] = {
        "accuracy": float(np.mean(labels == predicted)),
        "macro_f1": float(f1[occurring].mean()),
        "matthews": float(metrics.matthews_corrcoef(labels, predicted)) if several else 0.0,
    }
    if probabilities is not None:
        chosen = np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels]
        result["log_loss"] = float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float32).tiny))))
        result["calibration"] = calibration_bins(labels == predicted, np.max(probabilities, axis=1))
    return {
        **result,
        "right": packed(labels == predicted),
        "per_class": _per_class(classes, precision, recall, f1, count),
        "confusion": confusion.tolist(),
        "classes": list(classes),
    }


def calibration_bins(right: np.ndarray, confidence: np.ndarray, *, bins: int = 15) -> list[dict[str, float]]:
    """What the expected calibration error and a reliability diagram are made of (Guo et al. 2017, arXiv 1706.04599).

    Args:
      right: (B,), whether the predicted class is the true one.
      confidence: (B,), the probability of the predicted class.
      bins: of equal width, from 0 to 1.

    Returns:
      a row for each bin that is not empty: `bin` (its number), `count`, and the means `confidence` and `accuracy`.
    """
    confidence = np.asarray(confidence, np.float64)
    number = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "bin": int(i),
            "count": int(np.sum(number == i)),
            "confidence": round(float(confidence[number == i].mean()), 6),
            "accuracy": round(float(np.mean(right[number == i])), 6),
        }
        for i in np.unique(number)
    ]


def packed(right: np.ndarray) -> dict[str, Any]:
    """(B,) booleans as {"count": B, "bits": hexadecimal digits, the first example first}: a quarter of a byte each."""
    bits = np.packbits(np.asarray(right, bool))
    return {"count": len(right), "bits": bits.tobytes().hex()}


def multi_label(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """How well sets of labels are predicted.

    Args:
      labels: (B, Y), 0 or 1.
      predicted: (B, Y), 0 or 1.
      classes: Y names.

    Returns:
      `subset_accuracy`, the share of examples whose whole set is right; `micro_f1` over all decisions; `macro_f1`,
      the mean over all classes, 0 for one that neither occurs nor is predicted. Tables: `per_class`, `classes`.
    """
    from sklearn import metrics

    labels, predicted = np.asarray(labels).astype(np.int64), np.asarray(predicted).astype(np.int64)
    table = metrics.precision_recall_fscore_support(labels, predicted, average=None, zero_division=0.0)
    return {
        "subset_accuracy": float(np.mean((labels == predicted).all(axis=1))),
        "micro_f1": float(metrics.f1_score(labels, predicted, average="micro", zero_division=0.0)),
        "macro_f1": float(table[2].mean()),
        "per_class": _per_class(classes, *table),
        "classes": list(classes),
    }


def regression(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """How well numbers are predicted; both are (B,).

    Returns:
      `pearson` and `spearman`, in [−1, 1], 0 where either side is constant; `rmse` in the unit of the targets.
      The correlations are NaN where a prediction is not finite.
    """
    targets, predicted = np.asarray(targets, np.float64), np.asarray(predicted, np.float64)
    return {
        "pearson": pearson(targets, predicted),
        "spearman": spearman(targets, predicted),
        "rmse": float(np.sqrt(np.mean((targets - predicted) ** 2))),
    }


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """The linear correlation of two (B,) arrays; 0 where either is constant, NaN where one is not finite."""
    from scipy import stats

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return 0.0 if _constant(a) or _constant(b) else float(stats.pearsonr(a, b).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The rank correlation of two (B,) arrays, ties at their mean rank; degenerate input as in `pearson`."""
    from scipy import stats

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return pearson(stats.rankdata(a), stats.rankdata(b))


def retrieval(
    queries: np.ndarray, items: np.ndarray, query_groups: np.ndarray, item_groups: np.ndarray, *, prefix: str = ""
) -> dict[str, float]:
    """How high the items that match a query rank among all items, by the dot product.

    A query's rank is that of its best match; items that do not match and have the same score stand before it, so that
    equal embeddings of everything score nothing.

    Args:
      queries: (Q, D).
      items: (N, D).
      query_groups: (Q,), integers.
      item_groups: (N,), integers; an item matches the queries with its number.
      prefix: of the names of the results.

    Returns:
      `recall_at_1`, `recall_at_5`, `recall_at_10`: the share of queries with so high a rank; `mean_reciprocal_rank`.
      A query that nothing matches counts 0.
    """
    ranks = []
    for start in range(0, len(queries), 1024):
        part = slice(start, start + 1024)
        scores = np.asarray(queries[part], np.float32) @ np.asarray(items, np.float32).T
        match = np.asarray(query_groups)[part, None] == np.asarray(item_groups)[None, :]
        best = np.where(match, scores, -np.inf).max(axis=1)
        before = (~match & (scores >= best[:, None])).sum(axis=1)
        ranks.append(np.where(match.any(axis=1), before + 1.0, np.inf))
    rank = np.concatenate(ranks)
    recalls = {f"{prefix}recall_at_{k}": float(np.mean(rank <= k)) for k in (1, 5, 10)}
    return {**recalls, f"{prefix}mean_reciprocal_rank": float(np.mean(1 / rank))}


def _constant(x: np.ndarray) -> bool:
    """Whether what varies in `x` is no more than rounding: SciPy warns at 1e-12 of the mean."""
    return len(x) < 2 or bool(np.linalg.norm(x - x.mean()) <= 1e-11 * abs(x.mean()))


def _per_class(classes: Sequence[str], *columns: np.ndarray) -> list[dict[str, Any]]:
    names = ("precision", "recall", "f1")
    return [
        {"class": name, **{n: float(x) for n, x in zip(names, row, strict=False)}, "count": int(row[-1])}
        for name, row in zip(classes, np.stack(columns, axis=1), strict=True)
    ]
