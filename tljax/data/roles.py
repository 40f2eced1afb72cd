"""Which column of a source plays which part in a record."""

from collections.abc import Iterable, Mapping

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest

CONTENTS = ("text", "image", "audio", "tokens", "question")
"""One of these at least is what a model reads."""

ROLES = (
    *CONTENTS,
    *("text_b", "target_text", "context", "answers", "answer_starts", "tags", "boxes", "labels", "ignore", "mask"),
    *("rate", "speaker", "episode", "role", "label", "score", "id"),
)
"""`label` is a class (or several), `score` a number to regress on; both become the record's `label`.

`tags` are a class a token, `labels` a class a box, `mask` a class a pixel; `target_text` is what is to be written.
`episode` says which records belong together, and `role` what each is there: "support" or "query".
"""

RAW = ("image", "audio", "mask")
"""Kept as encoded bytes or arrays."""


def choose_columns(
    available: Iterable[str], columns: Mapping[str, str] | None, *, where: str, guess: Mapping[str, str] | None = None
) -> dict[str, str]:
    """role → column.

    Args:
      available: the source's columns.
      columns: the user's choice; None takes the columns that are called like a role, and failing that `guess`.
      where: the source, for messages.
      guess: role → column, where types tell more than names.

    Raises:
      UserError: unknown roles, missing columns (with the header and the nearest name), nothing to read (`CONTENTS`).
    """
    available = list(map(str, available))
    header = f"The columns are: {', '.join(available) or '(none)'}."
    if columns is None:
        columns = {role: role for role in ROLES if role in available}
        if not set(CONTENTS) & set(columns):
            columns = dict(guess or {})
    faults = []
    for role, name in columns.items():
        if role not in ROLES:
            faults.append(f"{role!r} is no part of a record. {suggest(role, ROLES)}")
        elif name not in available:
            faults.append(f"there is no column {name!r} for {role!r}. {suggest(name, available)}")
    if not set(CONTENTS) & set(columns):
        faults.append(f"no column is named as the text or the image: columns=dict(text='…', label='…'). {header}")
    if {"label", "score"} <= set(columns):
        faults.append("columns names both a label (a class) and a score (a number); choose one.")
    raise_faults(f"The columns of {where} cannot be used:", faults)
    return dict(columns)


def choose_split(split: str, available: Iterable[str], *, where: str) -> str:
    """`split`, if the source has it."""
    available = list(available)
    if split not in available:
        raise UserError(f"{where} has no split {split!r}. {suggest(split, available)}")
    return split
