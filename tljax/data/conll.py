"""`conll:PATH`: columns of tokens and tags, an empty line between sentences (Tjong Kim Sang and De Meulder 2003)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.columns import ColumnRecords, read_file
from tljax.data.files import split_files

OUTSIDE = "O"
MOST_FAULTS = 20


class Sentence(NamedTuple):
    """The tokens of a sentence and a tag for each."""

    tokens: list[str]
    tags: list[str]


def parse(
    text: str, where: str, *, token: int = 0, tag: int = -1, classes: Sequence[str] | None = None
) -> list[Sentence]:
    """The sentences of a file in CoNLL's columns, separated by white space. `-DOCSTART-` lines are left out.

    Args:
      text: the file.
      where: its name, for messages.
      token: the column of the token.
      tag: the column of the tag; -1 is the last.
      classes: the tags there may be; None takes any in the form `O`, `B-KIND`, `I-KIND`.

    Raises:
      UserError: lines with too few columns, tags that are no tags or unknown, with the numbers of their lines. (An
        `I-KIND` that continues nothing is CoNLL's older spelling of a beginning, and allowed.)
    """
    sentences, faults = [Sentence([], [])], []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            if sentences[-1].tokens:
                sentences.append(Sentence([], []))
            continue
        if len(fields) < 2:
            faults.append(f"line {number} has no tag: {line!r}.")
            continue
        name = fields[tag]
        if classes is not None and name not in classes:
            faults.append(f"line {number}: {name!r} is no tag. {suggest(name, classes)}")
        elif not well_formed(name):
            faults.append(f"line {number}: {name!r} is no tag of the form O, B-KIND or I-KIND.")
        sentences[-1].tokens.append(fields[token])
        sentences[-1].tags.append(name)
    more = len(faults) - MOST_FAULTS
    raise_faults(f"{where} cannot be read:", [*faults[:MOST_FAULTS], *([f"and {more} more."] if more > 0 else [])])
    return sentences if sentences[-1].tokens else sentences[:-1]


def well_formed(tag: str) -> bool:
    """Whether `tag` is `O`, or `B-` or `I-` and a kind."""
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def tag_names(found: set[str]) -> tuple[str, ...]:
    """The tags of a data set in a fixed order: O, then B and I of each kind, both where one occurs."""
    kinds = sorted({tag[2:] for tag in found if tag != OUTSIDE})
    return (OUTSIDE, *(f"{side}-{kind}" for kind in kinds for side in "BI"))


def open_conll(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A CoNLL file as a source of `tokens` and `tags`; the classes are the tags of all splits.

    `columns` may give the numbers of the columns: {"tokens": 0, "tags": 3}; default the first and the last.
    """
    where = f"conll:{rest}"
    path, files = split_files(rest, split, data_dir, suffix=".conll", where=where)
    chosen = {"tokens": 0, "tags": -1, **(columns or {})}
    unknown = [name for name in chosen if name not in ("tokens", "tags") or not isinstance(chosen[name], int)]
    raise_faults(
        f"The columns of {where} cannot be used:", [f"{name!r}: give tokens and tags a number." for name in unknown]
    )

    def read(file) -> list[Sentence]:
        try:
            text = read_file(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not text in UTF-8: {error}.") from error
        return parse(text, str(file), token=chosen["tokens"], tag=chosen["tags"], classes=classes)

    sentences = read(path)
    if not sentences:
        raise UserError(f"{path} holds no sentences.")
    if classes is None:
        others = [sentence for file in files if file != path for sentence in read(file)]
        classes = tag_names({tag for sentence in (*sentences, *others) for tag in sentence.tags})
    names = tuple(classes)
    number = {name: i for i, name in enumerate(names)}
    records = {
        "tokens": [s.tokens for s in sentences],
        "tags": [[number[tag] for tag in s.tags] for s in sentences],
    }
    return Source(ColumnRecords(records, len(sentences), path.parent), names, f"{where}/{split}")
