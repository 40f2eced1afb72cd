"""Sources that are tables in a file: `csv:`, `tsv:`, `jsonl:` and `npz:`, with named columns."""

import csv
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.files import split_files
from tljax.data.labels import class_labels, scores
from tljax.data.roles import choose_columns


class Table(NamedTuple):
    """A file in memory: columns by name, all of one length, and the line where each row starts (None: no lines)."""

    columns: dict[str, Sequence[Any]]
    lines: Sequence[int] | None


class ColumnRecords:
    """Records from columns in memory; `id` is the position where no column is named so.

    Images and sounds that are paths are read from `folder` when they are asked for.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], length: int, folder: Path):
        self._columns = dict(columns)
        self._length = length
        self._folder = folder

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = {"id": int(index), **{role: values[index] for role, values in self._columns.items()}}
        for role in ("image", "audio"):
            if isinstance(record.get(role), str):
                if "id" not in self._columns:
                    record["id"] = record[role]
                record[role] = read_file(self._folder / record[role])
        return record

    def labels(self) -> list[Any]:
        """All labels, without the rest of the records."""
        return list(self._columns.get("label", ()))


def read_file(path: Path) -> bytes:
    """The content of `path`; raises `UserError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def read_separated(path: Path, *, delimiter: str) -> Table:
    """A csv or tsv file in UTF-8 whose first line names the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(rows, [])
            values: list[list[str]] = [[] for _ in header]
            lines, start = [], rows.line_num + 1
            for row in rows:
                if len(row) != len(header) and row:
                    raise UserError(
                        f"{path}, line {start}: {len(row)} fields, and the header has {len(header)}: {header}."
                    )
                for column, value in zip(values, row, strict=False):
                    column.append(value)
                lines += [start] if row else []
                start = rows.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8 with columns: {error}.") from error
    return Table(dict(zip(header, values, strict=True)), lines)


def read_jsonl(path: Path) -> Table:
    """A file with one JSON object a line; a key that an object lacks is None."""
    objects, lines = [], []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                objects.append(json.loads(line))
                lines.append(number)
                if not isinstance(objects[-1], dict):
                    raise UserError(f"{path}, line {number} is not a JSON object.")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number} is not JSON: {error}.") from error
    names = list(dict.fromkeys(key for row in objects for key in row))
    return Table({name: [row.get(name) for row in objects] for name in names}, lines)


def read_npz(path: Path) -> Table:
    """The arrays of an npz file; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as npz (without pickles): {error}") from error
    return Table(columns, None)


def _open(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    kind: str,
    read: Any,
) -> Source:
    """A table as a source; the classes are those of all splits."""
    where = f"{kind}:{rest}"
    path, files = split_files(rest, split, data_dir, suffix=f".{kind}", where=where)
    table = read(path)
    chosen = choose_columns(table.columns, columns, where=str(path))
    found = {role: table.columns[name] for role, name in chosen.items()}
    lengths = {chosen[role]: len(values) for role, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"The columns of {path} have different lengths: {lengths}.")
    length = next(iter(lengths.values()))
    if not length:
        raise UserError(f"{path} holds no records.")

    def line(i: int) -> str:
        return f"{path.name}, record {i}" if table.lines is None else f"{path.name}, line {table.lines[i]}"

    for role in {"text", "text_b", "target_text"} & set(found):
        found[role] = _texts(found[role], chosen[role], line)
    names = None
    if "score" in found:
        found["label"] = scores(found.pop("score"), where=where, line=line)
    elif "label" in found:
        others = [read(file).columns.get(chosen["label"], ()) for file in files if file != path and classes is None]
        found["label"], names = class_labels(_listed(found["label"]), others, classes=classes, where=where, line=line)
    return Source(ColumnRecords(found, length, path.parent), names, f"{where}/{split}")


def _texts(values: Sequence[Any], name: str, line: Any) -> list[str]:
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{line(i)}: the text in {name!r} is {value!r}, not a string.")
    return list(map(str, values))


def _listed(labels: Sequence[Any]) -> Sequence[Any]:
    """Rows of a matrix of zeros and ones as lists of the classes that are marked; other labels as they are."""
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        return [np.flatnonzero(row) for row in labels]
    return labels


open_csv = partial(_open, kind="csv", read=partial(read_separated, delimiter=","))
open_tsv = partial(_open, kind="tsv", read=partial(read_separated, delimiter="\t"))
open_jsonl = partial(_open, kind="jsonl", read=read_jsonl)
open_npz = partial(_open, kind="npz", read=read_npz)
