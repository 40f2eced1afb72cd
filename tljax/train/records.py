"""`metrics.jsonl`: one record a line, cut back to the checkpoint's offset on restore."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tljax.base.files import write_whole
from tljax.base.processes import first

NAME = "metrics.jsonl"


class Records:
    """An append-only file of JSON lines. A class because it owns an open file.

    Each line is flushed when it is written. `settled` goes into a checkpoint; `truncate` takes a file back to it, so
    that after a restore no record stands twice. Of several processes the first one writes, and the others nothing.
    """

    def __init__(self, folder: Path):
        self.path, self._writes = Path(folder) / NAME, first()
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf8")

    def write(self, kind: str, **values: Any) -> None:
        """Appends one record."""
        if not self._writes:
            return
        self._file.write(json.dumps({"kind": kind, **plain(values)}) + "\n")
        self._file.flush()

    def evaluation(self, step: int, split: str, metrics: dict[str, float], tables: dict[str, Any]) -> None:
        """Appends what an evaluation found; its pictures go to files, renewed by the next evaluation of the split."""
        if not self._writes:
            return
        shown = []
        for number, picture in enumerate(tables.get("pictures", ())):
            file = self.path.parent / "pictures" / f"{split}-{number}.png"
            file.parent.mkdir(exist_ok=True)
            write_whole(file, picture["png"])
            shown.append({"title": picture["title"], "file": f"pictures/{file.name}"})
        tables = {**tables, "pictures": shown} if shown else tables
        self.write("evaluate", step=step, split=split, metrics=metrics, tables=tables)

    def settled(self) -> int:
        """Bytes written so far, all of them on the disk: a checkpoint may not tell of lines that get lost."""
        if not self._writes:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def truncate(self, offset: int) -> int:
        """Drops everything after `offset` bytes; returns how many bytes before it are missing.

        Where some are (the file was damaged, or removed), the whole lines that are left stay.
        """
        if not self._writes:
            return 0
        self._file.flush()
        missing = max(0, offset - self.path.stat().st_size)
        if missing:
            offset = self.path.read_bytes().rfind(b"\n") + 1
        os.truncate(self.path, offset)
        return missing

    def close(self) -> None:
        """Closes the file."""
        if self._writes:
            self._file.close()


def plain(value: Any) -> Any:
    """`value` as JSON knows it: arrays and NumPy scalars become numbers and lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "dtype"):
        return np.asarray(value).tolist()
    return value
