"""Reading the records of a run folder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.errors import UserError

STATES = ("done", "stopped", "failed")
"""How a run may end, in records.jsonl."""


class Run(NamedTuple):
    """What a run left behind.

    Attributes:
      folder: where it is.
      config: the resolved config; {} where there is no config.json.
      about: the rest of config.json: `digests`, `versions`, `devices`.
      inspect: inspect.json: `stages`, `total`; {} where there is none.
      records: the lines of metrics.jsonl, in order.
      outcomes: the lines of records.jsonl, one each time that the run ended, the last one last.
    """

    folder: Path
    config: dict[str, Any]
    about: dict[str, Any]
    inspect: dict[str, Any]
    records: list[dict[str, Any]]
    outcomes: Sequence[dict[str, Any]] = ()

    @property
    def outcome(self) -> dict[str, Any]:
        """The last line of records.jsonl; {} where there is none: the run goes on, or was killed."""
        return self.outcomes[-1] if self.outcomes else {}

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind: "train", "evaluate", "end"."""
        return [record for record in self.records if record["kind"] == kind]

    def last_evaluations(self) -> dict[str, dict[str, Any]]:
        """Split → its chosen evaluation: the one at the best step where there is one, else the last."""
        ends = self.of("end")
        best = ends[-1].get("best_step") if ends else None
        chosen: dict[str, dict[str, Any]] = {}
        for record in self.of("evaluate"):
            before = chosen.get(record["split"])
            if before is None or before["step"] != best or record["step"] == best:
                chosen[record["split"]] = record
        return chosen

    def final_evaluations(self) -> dict[str, dict[str, Any]]:
        """Split → its evaluation at the last step; a split that was not evaluated then is not there."""
        last = max((record["step"] for record in self.records if "step" in record), default=0)
        return {record["split"]: record for record in self.of("evaluate") if record["step"] == last}


def read_run(folder: Path) -> Run:
    """The records in `folder`.

    Raises:
      UserError: there is no metrics.jsonl, or a file is malformed; the message names file and line.
    """
    folder = Path(folder)
    content = read_json(folder / "config.json")
    config = content.pop("config", {})
    records, inspect = read_records(folder / "metrics.jsonl"), read_json(folder / "inspect.json")
    return Run(folder, config, content, inspect, records, read_outcomes(folder / "records.jsonl"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of one metrics.jsonl; raises as `read_run`."""
    if not path.exists():
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}.")
    records = []
    for number, line, record in _lines(path):
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise UserError(f"{path}, line {number} is not a record with a `kind`: {line[:60]!r}.")
        missing = [key for key in _NEEDED.get(record["kind"], ()) if key not in record]
        if missing:
            raise UserError(f"{path}, line {number}: the {record['kind']} record has no {', '.join(missing)}.")
        records.append(record)
    return records


def read_outcomes(path: Path) -> list[dict[str, Any]]:
    """The lines of one records.jsonl, [] without one; what a kill left of a last line is no line."""
    if not path.exists():
        return []
    for number, line, record in (found := list(_lines(path, torn=True))):
        if not isinstance(record, dict) or record.get("state") not in STATES:
            raise UserError(f"{path}, line {number} has no `state`, one of {', '.join(STATES)}: {line[:60]!r}.")
    return [record for _, _, record in found]


def _lines(path: Path, *, torn: bool = False) -> Iterator[tuple[int, str, Any]]:
    """(number, line, what it says) of each line; with `torn` without the last one if it was not ended."""
    try:
        text = path.read_text(encoding="utf8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error}.") from error
    text = text[: text.rfind("\n") + 1] if torn else text
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield number, line, json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): {line[:60]!r}.") from error


_NEEDED = {
    "train": ("step", "loss"),
    "evaluate": ("step", "split", "metrics"),
    "end": ("step",),
    "probe": ("metrics",),
    "domains": ("domains", "examples", "distances", "features", "cka", "predicted", "entries", "warnings"),
}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds, {} where there is no file; raises `UserError` for any other content."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object, and holds a {type(content).__name__}.")
    return content
