"""How far a classifier may be believed: expected calibration error and the reliability diagram, from recorded bins."""

from collections.abc import Iterable, Mapping, Sequence

from tljax.reports import plots
from tljax.reports.html import Html, element, section

NOTE = (
    "The examples are binned by the probability of the predicted class (15 bins of equal width). The expected "
    "calibration error (ECE) is the mean distance between that probability and the share that is right, weighted by "
    "the examples of each bin (Guo et al. 2017); of few examples it is too large. Below the diagonal a model is surer "
    "than it should be. The size of a dot says how many examples its bin has."
)

Bin = Mapping[str, float]


def pooled(runs: Iterable[Sequence[Bin]]) -> list[dict[str, float]]:
    """The bins of several runs as those of all their examples together.

    Args:
      runs: the bins of each: `bin` (its number), `count`, `confidence` and `accuracy` (means over its examples).
    """
    found: dict[float, dict[str, float]] = {}
    for each in (each for bins in runs for each in bins):
        into = found.setdefault(each["bin"], {"bin": each["bin"], "count": 0, "confidence": 0.0, "accuracy": 0.0})
        total = into["count"] + each["count"]
        for name in ("confidence", "accuracy"):
            into[name] = (into["count"] * into[name] + each["count"] * each[name]) / total
        into["count"] = total
    return [found[number] for number in sorted(found)]


def ece(bins: Sequence[Bin]) -> float:
    """The expected calibration error, from 0 to 1."""
    gaps = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
    return gaps / sum(each["count"] for each in bins)


def calibration_section(title: str, bins: Sequence[Bin]) -> list[Html]:
    """The diagram and the error; nothing without bins."""
    if not bins:
        return []
    confident = sum(each["count"] * each["confidence"] for each in bins)
    right = sum(each["count"] * each["accuracy"] for each in bins)
    too = "too sure" if confident > right else "not sure enough"
    sentence = element("p", f"ECE {100 * ece(bins):.1f} %: on average {too}.")
    picture = element("div", plots.reliability(bins, title="Reliability"), style="max-width:460px;margin:0 auto")
    return [section(title, sentence, picture, note=NOTE)]
