"""What is best: by which metric runs, checkpoints and probes are chosen, and which way it counts."""

import math
from collections.abc import Mapping

from tljax.base.errors import UserError
from tljax.base.tables import suggest

LOWER = ("loss", "rmse", "wer", "cer", "perplexity", "error", "bits")
"""Words of metrics of which less is better."""


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better, as far as its name tells."""
    return any(word in LOWER for word in metric.split("_"))


def chosen_by(main: tuple[str, str], metric: str | None) -> tuple[str, str]:
    """(metric, "max" or "min") that chooses: the task's own, or `config.train.metric` where that names another."""
    if metric in (None, main[0]):
        return main
    return metric, "min" if lower_is_better(metric) else "max"


def merit(metric: str, direction: str, numbers: Mapping[str, float]) -> float:
    """A number that is greater where `numbers` are better by the metric; what is not finite is the worst of all.

    Raises:
      UserError: the metric is not there; lists those that are.
    """
    if metric not in numbers:
        raise UserError(f"config.train.metric is {metric!r}. {suggest(metric, numbers)}")
    value = numbers[metric]
    return (value if direction == "max" else -value) if math.isfinite(value) else -math.inf
