"""Reading the records of a run folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.errors import UserError


class Run(NamedTuple):
    """What a run left behind.

    Attributes:
      folder: where it is.
      config: the resolved config; {} where there is no config.json.
      about: the rest of config.json: `digests`, `versions`, `devices`.
      inspect: inspect.json: `stages`, `total`; {} where there is none.
      records: the lines of metrics.jsonl, in order.
    """

    folder: Path
    config: dict[str, Any]
    about: dict[str, Any]
    inspect: dict[str, Any]
    records: list[dict[str, Any]]

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


def read_run(folder: Path) -> Run:
    """The records in `folder`.

    Raises:
      UserError: there is no metrics.jsonl, or a file is malformed; the message names file and line.
    """
    folder = Path(folder)
    content = _read_json(folder / "config.json")
    config = content.pop("config", {})
    return Run(folder, config, content, _read_json(folder / "inspect.json"), read_records(folder / "metrics.jsonl"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of one metrics.jsonl; raises as `read_run`."""
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): {line[:60]!r}.") from error
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise UserError(f"{path}, line {number} is not a record with a `kind`: {line[:60]!r}.")
        missing = [key for key in _NEEDED.get(record["kind"], ()) if key not in record]
        if missing:
            raise UserError(f"{path}, line {number}: the {record['kind']} record has no {', '.join(missing)}.")
        records.append(record)
    return records


_NEEDED = {
    "train": ("step", "loss"),
    "evaluate": ("step", "split", "metrics"),
    "end": ("step",),
    "probe": ("metrics",),
    "domains": ("domains", "examples", "distances", "features", "cka", "predicted", "entries", "warnings"),
}


def _read_json(path: Path) -> dict[str, Any]:
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
