"""The part of a run's report about two domains: how far apart they are, what moved in the model, what to be wary of."""

from collections.abc import Mapping
from typing import Any

from tljax.reports import plots
from tljax.reports.html import Html, element, section, table
from tljax.reports.records import Run

NOTE = (
    "Features are what the head reads; start is before the first step, end the chosen checkpoint. "
    "The proxy A-distance goes from 0 (a linear classifier cannot tell the domains apart) to 2; MMD² is the unbiased "
    "estimate with a Gaussian kernel and may be a little below 0. CKA compares start and end on the same examples: 1 "
    "means that a stage's features are the same but for a rotation and a scale."
)


def domain_sections(run: Run) -> list[Html]:
    """The section on the last record of kind "domains"; nothing where there is none."""
    records = run.of("domains")
    if not records:
        return []
    record = records[-1]
    source, target = record["domains"]
    counts = " and ".join(f"{n} of {name}" for n, name in zip(record["examples"], record["domains"], strict=True))
    warnings = [element("p", sentence, class_="headline") for sentence in [*record["warnings"], *fallen(run)]]
    parts = [*warnings, table(["", "start", "end"], _rows(record)), *_entries(record)]
    cka = record["cka"]
    if cka["stages"]:
        series = {name: cka[name] for name in record["domains"]}
        picture = plots.by_stage(series, cka["stages"], title="CKA between start and end", label="linear CKA")
        parts.append(element("div", picture, class_="below"))
    return [section(f"Domains: {source} and {target}", *parts, note=f"{NOTE} Here {counts}.")]


def fallen(run: Run) -> list[str]:
    """A sentence where the metric that chooses was worse at the last evaluation on validation than at the first."""
    ends = run.of("end")
    best = (ends[-1].get("best") or {}) if ends else {}
    values = [
        record["metrics"][best["metric"]]
        for record in run.of("evaluate")
        if record["split"] == "validation" and best.get("metric") in record["metrics"]
    ]
    # The best value is the highest of them, or the lowest.
    if len(values) < 2 or best.get("value") not in (min(values), max(values)) or min(values) == max(values):
        return []
    sign = 1 if best["value"] == max(values) else -1
    if sign * values[-1] >= sign * values[0]:
        return []
    said = best["metric"].replace("_", " ")
    return [
        f"Validation fell: its {said} was {values[0]:.4f} at the first evaluation and {values[-1]:.4f} at the last."
    ]


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    times = ("start", "end")
    distances = record["distances"]
    rows = [
        [title, *(_number(distances[when][key]) for when in times)]
        for key, title in (("proxy_a_distance", "proxy A-distance"), ("mmd2", "MMD²"))
    ]
    for name in record["domains"]:
        for key, title in (("effective_rank", "effective rank"), ("spread", "spread")):
            values = (_number(record["features"][name][when][key]) for when in times)
            rows.append([f"{title} of {name}", *values])
        most = record["predicted"].get(name)
        if most:
            values = (f"{most[when]['class']}: {100 * most[when]['share']:.1f} %" for when in times)
            rows.append([f"most predicted class of {name}", *values])
    return rows


def _entries(record: Mapping[str, Any]) -> list[Html]:
    if not record["entries"]:
        return []
    rows = [
        [name, str(found["examples"]), *(f"{100 * found[when]:.1f} %" for when in ("start", "end"))]
        for name, found in record["entries"].items()
    ]
    return [element("h3", "Accuracy before and after"), table(["entry", "examples", "start", "end"], rows)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
