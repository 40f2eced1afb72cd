"""Several ways to do one thing, each over some seeds: a table, a picture, and a sentence computed from both."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.reports import plots
from tljax.reports.html import element, page, section, table
from tljax.reports.significance import difference
from tljax.reports.tables import markdown


def ranked(rows: Sequence[Mapping[str, Any]], *, higher_is_better: bool = True) -> list[Mapping[str, Any]]:
    """The rows, the best mean first.

    Raises:
      UserError: no rows, a row without a name or without values, or values that are not finite.
    """
    faults = [] if rows else ["there are no rows."]
    for i, row in enumerate(rows):
        name, values = row.get("name"), row.get("values")
        if not name:
            faults.append(f"row {i} has no name.")
        if not values:
            faults.append(f"row {i} ({name}) has no values.")
        elif not all(math.isfinite(value) for value in values):
            faults.append(f"row {i} ({name}) has values that are not finite: {list(values)}.")
    raise_faults("The comparison cannot be made:", faults)
    sign = -1 if higher_is_better else 1
    return sorted(rows, key=lambda row: sign * statistics.fmean(row["values"]))


def verdict(rows: Sequence[Mapping[str, Any]], *, higher_is_better: bool = True, percent: bool = True) -> str:
    """Which row wins, by how much over each other, and whether that is more than chance, in sentences.

    Args:
      rows: {"name", "values": one a seed}.
      higher_is_better: what wins.
      percent: the values are shares, and differences are said in points.
    """
    best, *others = ranked(rows, higher_is_better=higher_is_better)
    said: dict[str, list[str]] = {"clear": [], "unclear": [], "unknown": []}
    for row in others:
        pair = (best["values"], row["values"]) if higher_is_better else (row["values"], best["values"])
        gap = difference(*pair)
        lead = f"{_amount(gap.mean, gap.spread, percent, ' points')} over {row['name']}"
        if math.isnan(gap.spread):
            said["unknown"].append(lead)
        elif gap.clear:
            low, high = (_amount(end, gap.spread, percent, bare=True) for end in (gap.low, gap.high))
            said["clear"].append(f"{lead} (95 % interval {low} to {high})")
        else:
            said["unclear"].append(lead)
    sentence = f"{best['name']} reaches {spread_of(best['values'], percent)}"
    parts = [f"{sentence}, the best of {len(rows)}." if others else f"{sentence}; there is nothing to compare it with."]
    if said["clear"]:
        parts.append(f"It wins by {_listed(said['clear'])}: more than the spread explains.")
    if said["unclear"]:
        parts.append(f"Its lead of {_listed(said['unclear'])} is within the spread: these runs do not decide it.")
    if said["unknown"]:
        parts.append(f"It is ahead by {_listed(said['unknown'])}; with a single run the spread is unknown.")
    text = " ".join(parts)
    return text[:1].upper() + text[1:]


def spread_of(values: Sequence[float], percent: bool = True) -> str:
    """Mean ± standard deviation over seeds: "81.6 ± 3.6 %"; without a deviation where there is one value."""
    return _amount(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, percent)


def comparison_table(
    rows: Sequence[Mapping[str, Any]], *, higher_is_better: bool = True, percent: bool = True, metric: str = "accuracy"
) -> Any:
    """A `rich.table.Table` for the terminal, the best row first and in bold."""
    from rich.table import Table

    columns, body = _cells(rows, higher_is_better, percent, metric)
    made = Table()
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    for i, row in enumerate(body):
        made.add_row(*row, style="bold" if i == 0 else None)
    return made


def markdown_table(
    rows: Sequence[Mapping[str, Any]], *, higher_is_better: bool = True, percent: bool = True, metric: str = "accuracy"
) -> str:
    """The table in Markdown, the best row first."""
    columns, body = _cells(rows, higher_is_better, percent, metric)
    return markdown(columns, body)


def write_comparison(
    folder: Path,
    *,
    title: str,
    question: str,
    rows: Sequence[Mapping[str, Any]],
    higher_is_better: bool = True,
    percent: bool = True,
    metric: str = "accuracy",
    notes: Sequence[str] = (),
) -> Path:
    """Writes `report.html` into `folder`; returns its path.

    Args:
      folder: made if it is missing.
      title: of the page.
      question: what was asked, in a sentence.
      rows: {"name", "values": one a seed, "seconds": number or one a seed, "live_parameters"}; the last two optional.
      higher_is_better: what wins.
      percent: the values are shares, shown times 100.
      metric: what the values are.
      notes: sentences below the table.

    Raises:
      UserError: as `ranked`.
    """
    order = ranked(rows, higher_is_better=higher_is_better)
    columns, body = _cells(rows, higher_is_better, percent, metric)
    label = f"{metric} (%)" if percent else metric
    picture = element("div", plots.bars(order, label=label, scale=100 if percent else 1), class_="below")
    note = "Mean ± standard deviation over seeds; dots are single runs."
    said = verdict(rows, higher_is_better=higher_is_better, percent=percent)
    parts = [
        element("p", said, class_="headline"),
        section("Result", table(columns, body, marked=[0]), picture, note=note),
        section("Every run", _runs(order, percent)),
    ]
    if notes:
        parts.append(section("Notes", *(element("p", note) for note in notes)))
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file; the report needs a folder.") from None
    path = folder / "report.html"
    path.write_text(page(title, question, *parts), encoding="utf8")
    return path


def _runs(rows: Sequence[Mapping[str, Any]], percent: bool) -> Any:
    most = max(len(row["values"]) for row in rows)
    shown = [[_amount(value, math.nan, percent) for value in row["values"]] for row in rows]
    body = [[row["name"], *cells, *[""] * (most - len(cells))] for row, cells in zip(rows, shown, strict=True)]
    return table(["", *(f"run {i}" for i in range(most))], body)


def _cells(rows, higher_is_better, percent, metric) -> tuple[list[str], list[list[str]]]:
    """(column titles, rows of text), the best first; columns that no row fills are left out."""
    order = ranked(rows, higher_is_better=higher_is_better)
    columns = {
        "": [str(row["name"]) for row in order],
        metric: [spread_of(row["values"], percent) for row in order],
        "runs": [str(len(row["values"])) for row in order],
        "live parameters": [f"{row['live_parameters']:,}" if "live_parameters" in row else "" for row in order],
        "seconds a run": [_seconds(row.get("seconds")) for row in order],
    }
    kept = [name for name, cells in columns.items() if any(cells)]
    return kept, [list(cells) for cells in zip(*(columns[name] for name in kept), strict=True)]


def _seconds(seconds: Any) -> str:
    if seconds is None or seconds == []:
        return ""
    mean = statistics.fmean(seconds) if isinstance(seconds, Sequence) else float(seconds)
    return f"{mean:.1f}" if mean < 100 else f"{mean:.0f}"


def _amount(mean: float, spread: float, percent: bool, unit: str = " %", *, bare: bool = False) -> str:
    """`mean ± spread` with as many decimals as the spread makes sense of; `bare` leaves out spread and unit."""
    factor = 100 if percent else 1
    mean, spread = factor * mean, factor * spread
    digits = _digits(spread, mean)
    if percent:  # one decimal, as papers have it, unless the spread is smaller than that
        digits = 2 if 0 < spread < 0.095 else 1
    beside = f" ± {spread:.{digits}f}" if math.isfinite(spread) and not bare else ""
    return f"{mean:.{digits}f}{beside}{unit if percent and not bare else ''}"


def _digits(spread: float, mean: float) -> int:
    """Decimals that show two digits of the spread, or four of the mean where there is no spread."""
    if math.isfinite(spread) and spread > 0:
        return min(8, max(0, 1 - math.floor(math.log10(spread))))
    return min(8, max(0, 3 - math.floor(math.log10(abs(mean))))) if mean else 3


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
