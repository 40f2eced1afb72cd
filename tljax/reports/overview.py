"""The page on many runs: which candidate is best, at which cost, and is the difference real?"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tljax.base.errors import RunError
from tljax.base.files import write_whole
from tljax.reports import plots
from tljax.reports.answer import SELECTIONS, Answer, Comparison, Row, cost, evaluation, states_of
from tljax.reports.calibration import calibration_section, ece, pooled
from tljax.reports.embedding import embedding_sections
from tljax.reports.gather import Gathered
from tljax.reports.groups import Group
from tljax.reports.html import Html, cards, element, page, section, table
from tljax.reports.significance import Mean, mean_of
from tljax.reports.sweep import sweep_sections
from tljax.reports.tables import comma_separated, latex, markdown
from tljax.reports.words import duration, said, scale_of, short, show, size_of, titled

CURVES = 8
"""Candidates whose learning curves are drawn: more lines cannot be told apart."""

COSTS = ("time a run", "live parameters", "GFLOP a step", "peak memory")
"""Columns of the table on what a run takes."""

HOW = (
    "Runs that differ in nothing but their seed are one group. What is compared are the sections model, task, method, "
    "strategy and data of their configs, or what --by names; where groups differ in other settings, validation "
    "chooses one for each candidate, and its test is what is shown.",
    "Means are over seeds, with Student's 95 % interval in brackets, which is wide where there are few of them (and "
    "cut at 0 and 100 %); of a single run there is none. Costs are medians of a run.",
    "The best candidate is compared with each other one, paired. Over the seeds that both have: would it be so with "
    "another seed? By Wilcoxon's signed ranks where there are enough pairs for them to reach 5 %, else by Student's t. "
    "Over the examples, where runs recorded which they had right: would it be so with other examples? By a paired "
    "bootstrap of the mean over seeds. p-values are corrected by Holm's method for the number of comparisons, and "
    "intervals are not. A difference is called real where each test that could be made finds less than 5 %.",
)


def write_overview(folder: Path, answer: Answer, gathered: Gathered) -> Path:
    """Writes `report.html`, `table.md`, `table.csv` and `table.tex` into `folder`; returns the page's path.

    Raises:
      RunError: the folder cannot be written.
    """
    columns, body = table_of(answer)
    question = answer.question
    names = ", ".join(sorted({study.get("name") or path.name for path, study in gathered.studies.items()}))
    title = names or f"{len(gathered.entries)} runs"
    parts = [
        element("p", headline(answer), class_="headline"),
        cards(_key_numbers(answer)),
        _result(answer),
        *_differences(answer),
        *_costs(answer),
        *_curves(answer),
        *sweep_sections(answer, gathered),
        *_best(answer),
        _runs(answer),
        section("How this was computed", *(element("p", sentence, class_="note") for sentence in HOW)),
    ]
    states = ", ".join(f"{count} {state}" for state, count in states_of(gathered.entries).items())
    subtitle = f"{said(question.metric)} on {question.split}, {_rule(answer)} · {len(gathered.entries)} runs: {states}"
    files = {
        "table.md": markdown(columns, body),
        "table.tex": latex(columns, body),
        "table.csv": comma_separated(numbers_of(answer)),
        "report.html": page(title, subtitle, *parts),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [write_whole(folder / name, text) for name, text in files.items()][-1]
    except OSError as error:
        raise RunError(f"The report cannot be written into {folder}: {error}") from error


def headline(answer: Answer) -> str:
    """The answer in a few sentences."""
    question, best = answer.question, answer.rows[0]
    value = f"{_interval(answer, best.values)} {said(question.metric)} on {question.split}"
    chosen = f" ({best.chosen})" if best.chosen else ""
    how = "is best by validation" if question.select != "oracle" else f"is best on {question.split} itself (oracle)"
    price = cost(best)
    paid = [duration(price["seconds"]) + " a run"] if price["seconds"] is not None else []
    paid += [f"{short(price['live_parameters'])} live parameters"] if price["live_parameters"] else []
    parts = [f"{best.name}{chosen} {how}: {value}{', at ' + ' and '.join(paid) if paid else ''}."]
    if not answer.comparisons:
        return f"{parts[0]} There is nothing to compare it with."
    second = answer.comparisons[0]
    points = " points" if scale_of(question.metric)[1] else ""
    parts.append(f"Against {second.row.name}, the next, {_gap(answer, second)}{points}: {_is_real(second)}")
    rest = answer.comparisons[1:]
    for verdict, words in (("yes", "It is really better than"), ("worse", "It is really worse than")):
        names = [each.row.name for each in rest if _sided(each) == verdict]
        parts += [f"{words} {_listed(names)}."] if names else []
    open_ = [each.row.name for each in rest if each.verdict != "yes"]
    parts += [f"Not decided: {_listed(open_)}."] if open_ else []
    return " ".join(parts)


def table_of(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """(column titles, rows of text), the best first; columns that no row fills are left out."""
    question, prices = answer.question, [cost(row) for row in answer.rows]
    _, unit, _ = scale_of(question.metric)
    name = said(question.metric)
    compared: list[Comparison | None] = [None, *answer.comparisons]
    columns: dict[str, list[str]] = {
        "": [row.name for row in answer.rows],
        "chosen on validation": [row.chosen for row in answer.rows],
        "runs": [str(len(row.values)) for row in answer.rows],
    }
    if question.split != "validation":
        columns[f"validation {name}{unit}"] = [_interval(answer, row.validation, bare=True) for row in answer.rows]
    columns |= {
        f"{question.split} {name}{unit}": [_interval(answer, row.values, bare=True) for row in answer.rows],
        "best − this": [_gap(answer, each) if each else "" for each in compared],
        "p": [_p(each) if each else "" for each in compared],
        "real?": [each.verdict if each else "" for each in compared],
        "ECE %": [_ece(answer, row) for row in answer.rows],
        "time a run": [duration(p["seconds"]) if p["seconds"] is not None else "" for p in prices],
        "live parameters": [short(p["live_parameters"]) if p["live_parameters"] is not None else "" for p in prices],
        "GFLOP a step": [f"{p['step_flops'] / 1e9:.3g}" if p["step_flops"] else "" for p in prices],
        "peak memory": [size_of(p["peak_memory"]) if p["peak_memory"] else "" for p in prices],
    }
    kept = [title for title, cells in columns.items() if any(cells)]
    return kept, [list(cells) for cells in zip(*(columns[title] for title in kept), strict=True)]


def numbers_of(answer: Answer) -> list[dict[str, Any]]:
    """The table in numbers, with all their digits, in the units of the records."""
    rows = []
    for row, each in zip(answer.rows, [None, *answer.comparisons], strict=True):
        values, validation = mean_of(row.values), mean_of(row.validation) if row.validation else Mean(*[math.nan] * 4)
        over, examples = (each.seeds, each.examples) if each else (None, None)
        rows.append(
            {
                "name": row.name,
                "chosen": row.chosen,
                "select": answer.question.select,
                "metric": answer.question.metric,
                "split": answer.question.split,
                "n": values.n,
                **{f"validation_{key}": getattr(validation, key) for key in ("mean", "low", "high")},
                **{key: getattr(values, key) for key in ("mean", "low", "high")},
                "values": " ".join(map(repr, row.values)),
                "seeds": " ".join(str(entry.seed) for entry in row.entries),
                "best_minus_this": over.mean if over else None,
                "test_over_seeds": over.name if over else None,
                "p_seeds": each.p[0] if each else None,
                "p_examples": each.p[1] if each and examples else None,
                "real": each.verdict if each else None,
                **cost(row),
            }
        )
    return rows


def _rule(answer: Answer) -> str:
    select = answer.question.select
    return f"selection “{select}”: {SELECTIONS[select]}"


def _interval(answer: Answer, values: Sequence[float], *, bare: bool = False) -> str:
    """ "96.2 [95.1, 97.3] %"; `bare` without the unit, and of a single run the mean alone."""
    if not values:
        return ""
    _, unit, digits = scale_of(answer.question.metric)
    mean = _mean(answer, values)
    text = f"{mean.mean:.{digits}f}"
    if mean.n > 1:
        text += f" [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
    return text if bare else f"{text}{unit}"


def _mean(answer: Answer, values: Sequence[float]) -> Mean:
    """In per cent where values are shares, whose interval ends at 0 and 100."""
    factor, unit, _ = scale_of(answer.question.metric)
    mean = mean_of([factor * value for value in values])
    return mean._replace(low=max(mean.low, 0.0), high=min(mean.high, 100.0)) if unit and mean.n > 1 else mean


def _gap(answer: Answer, comparison: Comparison) -> str:
    """How far the best is ahead, with the interval over seeds: "+1.2 [0.1, 2.3]"."""
    factor, _, digits = scale_of(answer.question.metric)
    test = comparison.seeds
    if test is None:
        return ""
    text = f"{factor * test.mean:+.{digits}f}"
    if math.isfinite(test.low):
        text += f" [{factor * test.low:.{digits}f}, {factor * test.high:.{digits}f}]"
    return text.replace("-", "−")


def _p(comparison: Comparison) -> str:
    named = zip(("seeds", "examples"), comparison.p, strict=True)
    return ", ".join(f"{name} {_probability(p)}" for name, p in named if not math.isnan(p))


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _sided(comparison: Comparison) -> str:
    """The verdict, with "worse" in the place of "yes" where the best by validation is behind."""
    behind = comparison.seeds is not None and comparison.seeds.mean < 0
    return "worse" if comparison.verdict == "yes" and behind else comparison.verdict


def _is_real(comparison: Comparison) -> str:
    verdict = _sided(comparison)
    lead = {"yes": "real, for it is ", "worse": "real, and validation chose the worse one: it is "}.get(verdict, "")
    return lead + comparison.reason


def _ece(answer: Answer, row: Row) -> str:
    bins = _bins(answer, row)
    return f"{100 * ece(bins):.1f}" if bins else ""


def _bins(answer: Answer, row: Row) -> list[dict[str, float]]:
    """Of all runs of the row together; [] unless each has them."""
    found = [(evaluation(e, answer.question.split, answer.question).get("tables") or {}) for e in row.entries]
    bins = [tables.get("calibration") for tables in found]
    return pooled(bins) if all(bins) else []


def _key_numbers(answer: Answer) -> list[tuple[str, str, str]]:
    question, best, price = answer.question, answer.rows[0], cost(answer.rows[0])
    runs = f"{len(best.values)} run{'s' if len(best.values) > 1 else ''}"
    mean = show(question.metric, statistics.fmean(best.values))
    entries = [(mean, titled(question.metric), f"on {question.split}, {best.name}, {runs}")]
    if price["seconds"] is not None:
        entries.append((duration(price["seconds"]), "a run", "median, by the clock"))
    if price["live_parameters"] is not None:
        entries.append((short(price["live_parameters"]), "live parameters", ""))
    if price["step_flops"]:
        entries.append((f"{price['step_flops'] / 1e9:.3g} GFLOP", "a step", "as compiled, forward and backward"))
    if price["peak_memory"]:
        entries.append((size_of(price["peak_memory"]), "peak memory", "of the process"))
    return entries


def _result(answer: Answer) -> Html:
    note = f"Chosen: {SELECTIONS[answer.question.select]}. Means over seeds with 95 % intervals (Student's t)."
    if answer.question.select == "oracle":
        note = f"Oracle: what was chosen was chosen on {answer.question.split}, so the first row is too good. {note}"
    columns, body = _without(answer, *COSTS, "p")
    return section("Result", table(columns, body, marked=[0]), note=note)


def _without(answer: Answer, *titles: str) -> tuple[list[str], list[list[str]]]:
    """The table without some of its columns: a page is not wide enough for all."""
    columns, body = table_of(answer)
    kept = [i for i, title in enumerate(columns) if title not in titles]
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in body]


def _differences(answer: Answer) -> list[Html]:
    if not answer.comparisons:
        return []
    rows = []
    for each in answer.comparisons:
        tests = [(test, p) for test, p in zip((each.seeds, each.examples), each.p, strict=True) if test is not None]
        made = "; ".join(f"{test.name}, {test.n:,} pairs: p {_probability(p)}" for test, p in tests if p == p)
        reason = element("span", each.reason[:1].upper() + each.reason[1:], class_="sample")
        rows.append([each.row.name, _gap(answer, each), element("span", made, class_="sample"), _sided(each), reason])
    columns = [f"{answer.rows[0].name} against", "difference", "tests", "real?", "why"]
    return [section("Is the difference real?", table(columns, rows))]


def _costs(answer: Answer) -> list[Html]:
    question, prices = answer.question, [cost(row) for row in answer.rows]
    _, unit, _ = scale_of(question.metric)
    label = f"{said(question.metric)} on {question.split}{unit}"
    pictures = []
    kinds = (("seconds", "seconds a run", False), ("live_parameters", "live parameters", True))
    for name, what, log in (*kinds, ("run_flops", "FLOP a run", True)):
        points = [
            (row.name, price[name], _mean(answer, row.values)[:3])
            for row, price in zip(answer.rows, prices, strict=True)
            if price[name]
        ]
        if points:
            pictures.append(plots.against_cost(points, cost=what, label=label, log=log))
    others = [title for title in table_of(answer)[0] if title not in ("", *COSTS)]
    columns, body = _without(answer, *others)
    costs = [table(columns, body, marked=[0])] if len(columns) > 1 else []
    return [section("Against its cost", element("div", *pictures, class_="plots"), *costs)] if pictures else []


def _curves(answer: Answer) -> list[Html]:
    question = answer.question
    factor, unit, _ = scale_of(question.metric)
    series = {}
    for row in answer.rows[:CURVES]:
        steps: dict[float, list[float]] = {}
        for entry in row.entries:
            for record in entry.run.of("evaluate"):
                if record["split"] == "validation" and question.metric in record["metrics"]:
                    steps.setdefault(record["step"], []).append(record["metrics"][question.metric])
        if len(steps) > 1:
            series[row.name] = dict(sorted(steps.items()))
    if not series:
        return []
    note = "Means over seeds on validation; bands are one standard deviation to either side."
    if len(answer.rows) > CURVES:
        note += f" Of {len(answer.rows)} candidates the best {CURVES}."
    picture = plots.bands(series, title=f"Validation: {said(question.metric)}{unit}", scale=factor)
    return [section("Learning curves", element("div", picture, class_="below"), note=note)]


def _best(answer: Answer) -> list[Html]:
    """The mistakes of the best candidate, how sure it is of itself, and a map of its features."""
    row, question = answer.rows[0], answer.question
    found = [(evaluation(entry, question.split, question).get("tables") or {}) for entry in row.entries]
    parts = []
    classes = found[0].get("classes")
    if all(tables.get("confusion") and tables.get("classes") == classes for tables in found):
        by_class = zip(*(tables["confusion"] for tables in found), strict=True)
        counts = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in by_class]
        note = f"All {len(found)} runs together. Rows are true classes; colour: share of the row."
        title = f"Confusion of {row.name} on {question.split}"
        parts.append(section(title, plots.confusion(counts, classes), note=note))
    parts += calibration_section(f"Calibration of {row.name} on {question.split}", _bins(answer, row))
    maps = (embedding_sections(entry.run.folder, f" by {row.name}, seed {entry.seed}") for entry in row.entries)
    return [*parts, *next((found for found in maps if found), [])]


def _runs(answer: Answer) -> Html:
    question, rows = answer.question, []
    unread = Group("ended before its config was written", {}, answer.unread)
    for group in (*answer.groups, unread):
        for entry in group.entries:
            values = [evaluation(entry, split, question).get("metrics", {}) for split in ("validation", question.split)]
            shown = [show(question.metric, v[question.metric]) if question.metric in v else "" for v in values]
            error = element("span", (entry.error or "")[:200], class_="sample")
            seed = "" if entry.seed is None else str(entry.seed)
            rows.append([group.name, seed, entry.state, *shown, str(entry.run.folder), error])
    columns = ["run", "seed", "state", "validation", question.split, "folder", "error"]
    inside = element("details", element("summary", f"{len(rows)} runs"), table(columns, rows))
    return section("Every run", inside)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
