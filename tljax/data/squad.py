"""`squad:PATH`: questions on paragraphs, whose answers are parts of them (Rajpurkar et al. 2016, 2018)."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source
from tljax.data.columns import ColumnRecords, read_file
from tljax.data.files import split_files

MOST_FAULTS = 20


def parse(content: bytes, where: str) -> list[dict[str, Any]]:
    """The questions of a file in SQuAD's format, in its order.

    Args:
      content: JSON; version 1.1, or 2.0 with questions that have no answer.
      where: the file's name, for messages.

    Returns:
      dicts of `id`, `question`, `context`, `answers` (list of str) and `answer_starts` (list of int, characters).

    Raises:
      UserError: no JSON, missing keys, answers that do not stand where they should, by question.
    """
    try:
        articles = json.loads(content)["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        found = [
            {
                "id": str(entry["id"]),
                "question": entry["question"],
                "context": paragraph["context"],
                "answers": [answer["text"] for answer in entry.get("answers", ())],
                "answer_starts": [answer["answer_start"] for answer in entry.get("answers", ())],
            }
            for paragraph in paragraphs
            for entry in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where} is not in SQuAD's format (data, paragraphs, context, qas): {type(error).__name__}: {error}"
        ) from error
    faults = [fault for record in found for fault in misplaced(record)]
    more = len(faults) - MOST_FAULTS
    raise_faults(f"{where} cannot be read:", [*faults[:MOST_FAULTS], *([f"and {more} more."] if more > 0 else [])])
    return found


def misplaced(record: Mapping[str, Any]) -> list[str]:
    """A line for each answer that does not stand at its place in the context."""
    return [
        f"question {record['id']!r}: the answer {answer!r} does not stand at character {start}; there is "
        f"{record['context'][max(start, 0) : max(start, 0) + len(answer)]!r}."
        for answer, start in zip(record["answers"], record["answer_starts"], strict=True)
        if start < 0 or record["context"][start : start + len(answer)] != answer
    ]


def open_squad(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A SQuAD file (or a folder of them, named after splits) as a source of questions."""
    where = f"squad:{rest}"
    if columns or classes:
        raise UserError(f"{where} has its own columns and no classes: leave `columns` and `classes` out.")
    path, _ = split_files(rest, split, data_dir, suffix=".json", where=where)
    found = parse(read_file(path), str(path))
    if not found:
        raise UserError(f"{path} holds no questions.")
    values = {name: [record[name] for record in found] for name in found[0]}
    return Source(ColumnRecords(values, len(found), path.parent), None, f"{where}/{split}")
