"""Metrics, numbers and costs as a person writes them."""

import math
from collections.abc import Iterable
from typing import Any

SHARES = (
    *("accuracy", "macro_f1", "micro_f1", "subset_accuracy", "precision", "recall", "f1", "exact_match"),
    *("map", "map_50", "iou", "mean_iou", "mean_f1", "mean_accuracy", "pixel_accuracy", "wer", "cer", "token_accuracy"),
)
"""Metrics that are shown in per cent."""


def shown_split(splits: Iterable[str]) -> str:
    """The split that a report is about: "test" before others, validation only where there is nothing else."""
    return min(splits, key=lambda name: (name == "validation", name != "test"))


def scale_of(metric: str) -> tuple[int, str, int]:
    """(factor, unit, decimals) in which values of a metric are compared."""
    return (100, " %", 1) if metric in SHARES else (1, "", 4)


def said(metric: str) -> str:
    """A metric as a person writes it."""
    words = metric.replace("_", " ")
    return words[:-3] + " F1" if words.endswith(" f1") else words


def show(metric: str, value: float) -> str:
    """A value as a person writes it: shares in per cent."""
    return f"{100 * value:.1f} %" if metric in SHARES else number(value)


def number(value: Any) -> str:
    """A number with as many digits as help."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if math.isfinite(value) and 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def size_of(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def titled(metric: str) -> str:
    """A metric as a person begins a line with it."""
    words = said(metric)
    return words[:1].upper() + words[1:]


def short(count: float) -> str:
    """A count in thousands, millions or billions, to three digits."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)


def setting(value: Any) -> str:
    """A value of a config as a person writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.rstrip("/").rsplit("/", 1)[-1] if "/" in value else value
    return str(value)
