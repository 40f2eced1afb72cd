"""Which of several candidates is best, at which cost, and whether the difference is real."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.choosing import lower_is_better
from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.reports.gather import Entry, Gathered
from tljax.reports.groups import Group, candidates, make_groups
from tljax.reports.significance import LEVEL, Test, holm, over_examples, over_seeds
from tljax.reports.words import shown_split

SELECTIONS = {
    "validation": "the best on validation, with each run's best checkpoint",
    "last": "the best on validation, with each run's last step",
    "oracle": "the best on the reported split itself: an optimistic bound, and no way to choose",
}
"""Name of a rule → what it chooses."""


COSTS = ("seconds", "live_parameters", "step_flops", "run_flops", "peak_memory")
"""What a run costs; FLOPs of a run are those of a step times its steps."""


class Question(NamedTuple):
    """What is asked of the runs.

    Attributes:
      metric: by which candidates are compared.
      mode: "max" or "min": which values are good.
      select: a name of `SELECTIONS`.
      split: whose values are reported: test, or validation where no run was tested.
    """

    metric: str
    mode: str
    select: str
    split: str

    @property
    def sign(self) -> int:
        """1 where more is better, −1 where less is."""
        return 1 if self.mode == "max" else -1


class Row(NamedTuple):
    """A candidate, with the settings that were chosen for it.

    Attributes:
      name: of the candidate.
      group: that was chosen.
      among: number of groups it was chosen from.
      entries: its finished runs, by seed.
      validation: a value a run; [] where there is no validation.
      values: of the reported split, one a run.
    """

    name: str
    group: Group
    among: int
    entries: list[Entry]
    validation: list[float]
    values: list[float]

    @property
    def chosen(self) -> str:
        """The settings that were chosen on validation; "" where there was nothing to choose."""
        return self.group.name if self.among > 1 else ""


class Comparison(NamedTuple):
    """The best candidate against another one; differences are positive where the best is better.

    Attributes:
      row: the other one.
      seeds: a test over the seeds that both have, or None where they have none in common.
      examples: a test over the examples, where their answers are recorded.
      p: corrected p-values of both tests; NaN where there is none.
      verdict: "yes", "these runs only", "these examples only", "not shown" or "unknown".
      reason: a sentence on it.
    """

    row: Row
    seeds: Test | None
    examples: Test | None
    p: tuple[float, float]
    verdict: str
    reason: str


class Answer(NamedTuple):
    """What the runs say.

    Attributes:
      question: what was asked.
      rows: the best candidate first, the others in the order of what chose.
      comparisons: of the best with each other one, in that order.
      groups: all of them, chosen or not.
      unread: runs that ended before their config was written.
    """

    question: Question
    rows: list[Row]
    comparisons: list[Comparison]
    groups: list[Group]
    unread: list[Entry]


def answer(
    gathered: Gathered, *, metric: str | None = None, select: str = "validation", by: Sequence[str] = ()
) -> Answer:
    """What the runs say.

    Args:
      gathered: of `tljax.reports.gather`.
      metric: default: that of the study, or by which the runs chose their checkpoints.
      select: a name of `SELECTIONS`.
      by: see `tljax.reports.groups.candidates`.

    Raises:
      UserError: no run has finished, or none knows the metric; there is no validation to choose by.
    """
    if select not in SELECTIONS:
        raise UserError(f"--select is {select!r}. {suggest(select, SELECTIONS)}")
    question = _question(gathered, metric, select)
    configured = [bool(entry.run.config.keys() - {"seed"}) for entry in gathered.entries]
    groups = make_groups(entry for entry, known in zip(gathered.entries, configured, strict=True) if known)
    unread = [entry for entry, known in zip(gathered.entries, configured, strict=True) if not known]
    rows = []
    for name, members in candidates(groups, by).items():
        known = [row for group in members if (row := _row(name, group, len(members), question)).values]
        if known:
            rows.append(max(known, key=lambda row: _merit(row, question)))
    if not rows:
        raise UserError(
            f"No finished run has a config and the {question.metric} on {question.split} and on validation, as "
            f"--select={select} needs."
        )
    rows.sort(key=lambda row: _merit(row, question), reverse=True)
    return Answer(question, rows, compare(rows, question) if len(rows) > 1 else [], groups, unread)


def compare(rows: Sequence[Row], question: Question) -> list[Comparison]:
    """The first row against each other one, paired by seed and by example; p-values corrected by Holm's method."""
    best, *others = rows
    tests = []
    for row in others:
        pairs = _pairs(best, row)
        over = None
        if pairs:
            values = [[question.sign * side.values[i] for i in of] for side, of in zip((best, row), pairs, strict=True)]
            over = over_seeds(*values, comparisons=len(others))
        tests.append((over, _examples(best, row, pairs, question)))
    corrected = [holm([test.p if test else math.nan for test in column]) for column in zip(*tests, strict=True)]
    found = []
    for i, (row, (over, examples)) in enumerate(zip(others, tests, strict=True)):
        p = (corrected[0][i], corrected[1][i])
        found.append(Comparison(row, over, examples, p, *_verdict(over, examples, p)))
    return found


def cost(row: Row) -> dict[str, float | None]:
    """What a run of the row costs: medians of what `COSTS` names; None where no run tells."""
    found: dict[str, float | None] = {}
    for name in COSTS:
        values = [value for entry in row.entries if (value := _cost(entry, name)) is not None]
        found[name] = statistics.median(values) if values else None
    return found


def _cost(entry: Entry, name: str) -> float | None:
    """Of records.jsonl, and of what older runs left where they have none. A run may have ended several times."""
    lines = entry.run.outcomes
    if name == "run_flops":
        known = [line["step_flops"] * line["step"] for line in lines if line.get("step_flops")]
    else:
        known = [value for line in lines if (value := line.get(name)) is not None]
    if known:
        return max(known) if name == "peak_memory" else known[-1]
    ends = entry.run.of("end")
    if name == "seconds":
        return ends[-1].get("seconds") if ends else None
    return entry.run.inspect.get("total", {}).get("live_at_end") if name == "live_parameters" else None


def _question(gathered: Gathered, metric: str | None, select: str) -> Question:
    done = [entry for entry in gathered.entries if entry.state == "done"]
    evaluated = {split: record["metrics"] for e in done for split, record in e.run.last_evaluations().items()}
    if not evaluated:
        states = ", ".join(sorted(entry.state for entry in gathered.entries))
        raise UserError(f"No run has finished with an evaluation; the runs are {states or 'none'}.")
    split = shown_split(evaluated)
    accepted = list(dict.fromkeys(name for e in done for r in e.run.of("evaluate") for name in r["metrics"]))
    told = [study["metric"] for study in gathered.studies.values() if study.get("metric")]
    told += [best for entry in done for end in entry.run.of("end") if (best := (end.get("best") or {}).get("metric"))]
    metric = metric or next(iter(told), None) or next(iter(evaluated[split]), None)
    if metric not in accepted:
        raise UserError(f"--metric is {metric!r}. {suggest(metric or '', accepted)}")
    question = Question(metric, _mode(metric, gathered), select, split)
    if select != "oracle" and split != "validation" and not _values(done, question, "validation"):
        raise UserError(
            f"No run has the {metric} of a validation split, and what is best is not chosen on {split}. Evaluate on "
            "`validation`, or give --select=oracle, which is an optimistic bound."
        )
    return question


def _mode(metric: str, gathered: Gathered) -> str:
    """As a study or a run says, else by the name of the metric."""
    told = [(study.get("metric"), study.get("mode")) for study in gathered.studies.values()]
    chosen = (end.get("best") or {} for entry in gathered.entries for end in entry.run.of("end"))
    told += [(each.get("metric"), each.get("mode")) for each in chosen]
    found = (mode for name, mode in told if name == metric and mode in ("max", "min"))
    return next(found, "min" if lower_is_better(metric) else "max")


def evaluation(entry: Entry, split: str, question: Question) -> dict[str, Any]:
    """The record of the evaluation of a run on a split that the question is about; {} where there is none."""
    run = entry.run
    return (run.final_evaluations() if question.select == "last" else run.last_evaluations()).get(split, {})


def _value(entry: Entry, split: str, question: Question) -> float | None:
    return evaluation(entry, split, question).get("metrics", {}).get(question.metric)


def _values(entries: Sequence[Entry], question: Question, split: str) -> list[float]:
    return [value for entry in entries if (value := _value(entry, split, question)) is not None]


def _row(name: str, group: Group, among: int, question: Question) -> Row:
    entries, validation, values = [], [], []
    for entry in group.entries:
        value, chooser = (_value(entry, split, question) for split in (question.split, "validation"))
        if entry.state == "done" and value is not None and (question.select == "oracle" or chooser is not None):
            entries.append(entry)
            values.append(value)
            validation += [] if chooser is None else [chooser]
    return Row(name, group, among, entries, validation, values)


def _merit(row: Row, question: Question) -> float:
    values = row.values if question.select == "oracle" else row.validation
    return question.sign * statistics.fmean(values)


def _pairs(best: Row, row: Row) -> tuple[list[int], list[int]] | None:
    """The positions of runs with the same seed in both rows."""
    seeds = [entry.seed for entry in best.entries], [entry.seed for entry in row.entries]
    common = [seed for seed in dict.fromkeys(seeds[0]) if seed in seeds[1]]
    return tuple([side.index(seed) for seed in common] for side in seeds) if common else None


def _examples(best: Row, row: Row, pairs: Any, question: Question) -> Test | None:
    """A test over examples: of accuracies whose answers are recorded, on the same examples."""
    if pairs is None or question.metric != "accuracy":
        return None
    chosen = [[side.entries[i] for i in of] for side, of in zip((best, row), pairs, strict=True)]
    sides = [[_rights(evaluation(entry, question.split, question)) for entry in side] for side in chosen]
    lengths = {len(right) for side in sides for right in side}
    entries = ((e.run.config.get("data") or {}).get(question.split) for side in chosen for e in side)
    data = {json.dumps(entry, sort_keys=True) for entry in entries}
    return over_examples(*sides) if len(lengths) == 1 and lengths != {0} and len(data) == 1 else None


def _rights(record: Mapping[str, Any]) -> list[int]:
    """Which examples of an evaluation were right, 1 or 0 each; [] where it does not say.

    A probe of several draws records the answers of the first and the mean of all: those are not its answers.
    """
    kept = (record.get("tables") or {}).get("right")
    if not kept or not kept["count"]:
        return []
    bits = f"{int(kept['bits'], 16):b}".zfill(4 * len(kept["bits"]))
    right = [int(bit) for bit in bits[: kept["count"]]]
    return right if math.isclose(sum(right) / len(right), record["metrics"].get("accuracy", -1.0)) else []


def _verdict(over: Test | None, examples: Test | None, p: tuple[float, float]) -> tuple[str, str]:
    """("yes", "these runs only", …, the reason)."""
    n = over.n if over else 0
    seeds = f"{n} seed{'' if n == 1 else 's'}"
    if over is None and examples is None:
        return "unknown", "the two have no seed in common, so nothing is paired."
    if over is not None and p[0] < LEVEL:
        if examples is None or p[1] < LEVEL:
            also = "" if examples is None else f" and over {examples.n:,} examples"
            return "yes", f"more than chance over {seeds}{also}."
        return "these examples only", (
            f"the seeds agree, but {examples.n:,} examples cannot tell it: other examples may turn it round."
        )
    lacking = f"{seeds} cannot decide whether another seed would agree"
    if examples is not None and p[1] < LEVEL:
        near = "" if math.isnan(p[0]) else f" (p {p[0]:.2g})"
        return "these runs only", f"with these runs other examples would agree, but {lacking}{near}."
    if n < 2:
        return "unknown", f"{lacking}."
    neither = "" if examples is None else f", and neither can {examples.n:,} examples"
    return "not shown", f"{seeds} cannot decide it{neither}."


def states_of(entries: Sequence[Entry]) -> Mapping[str, int]:
    """State → number of runs in it."""
    found: dict[str, int] = {}
    for entry in entries:
        found[entry.state] = found.get(entry.state, 0) + 1
    return found
