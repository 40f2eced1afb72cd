"""Labels of local sources: names or numbers as they stand in a file → the labels of records, with names of classes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest

SHOWN = 5


def class_labels(
    values: Sequence[Any],
    others: Iterable[Sequence[Any]] = (),
    *,
    classes: Sequence[str] | None = None,
    where: str,
    line: Callable[[int], str] = lambda i: f"record {i}",
) -> tuple[list[Any], tuple[str, ...] | None]:
    """(labels of records, names of classes).

    Names become positions in the sorted names; whole numbers are such names too, sorted as numbers, so that labels
    0 … Y−1 keep their value; lists become several classes an example. Numbers with a fraction are targets of a
    regression and have no classes.

    Args:
      values: as read: str, int, float or list of them.
      others: the values of the other splits, so that all splits have the same classes.
      classes: the names in order, instead of those found. A label that is not one of them is an error.
      where: the source, for messages.
      line: position → place in the file, for messages.

    Raises:
      UserError: missing or negative labels, labels not in `classes`, names among numbers with a fraction.
    """
    parsed = [_parse(value) for value in values]
    everything = parsed + [_parse(value) for split in others for value in split]
    flat = [x for value in everything for x in (value if isinstance(value, list) else [value])]
    faults = [f"{line(i)}: the label is missing." for i, value in enumerate(parsed) if value is None]
    if classes is None and any(isinstance(x, float) for x in flat):
        faults += [
            f"{line(i)}: the label {value!r} is not a number, and others have a fraction."
            for i, value in enumerate(parsed)
            if value is not None and not isinstance(value, (int, float))
        ]
        _raise(faults, where)
        return [float(value) for value in parsed], None
    faults += [
        f"{line(i)}: the label {x} is negative."
        for i, value in enumerate(parsed)
        for x in (value if isinstance(value, list) else [value])
        if isinstance(x, int) and x < 0
    ]
    names = tuple(map(str, classes)) if classes is not None else _sorted_names({x for x in flat if x is not None})
    place = {name: i for i, name in enumerate(names)}

    def position(x: Any) -> int | None:
        if classes is not None and isinstance(x, int) and str(x) not in place:
            return x if 0 <= x < len(names) else None
        return place.get(str(x))

    labels = [[position(x) for x in value] if isinstance(value, list) else position(value) for value in parsed]
    faults += [
        f"{line(i)}: the label {value!r} is out of range. {suggest(str(value), names)}"
        for i, (value, label) in enumerate(zip(parsed, labels, strict=True))
        if value is not None and (label is None or (isinstance(label, list) and None in label))
    ]
    _raise(faults, where)
    return labels, names


def scores(values: Sequence[Any], *, where: str, line: Callable[[int], str]) -> list[float]:
    """Targets of a regression. Raises `UserError` for what is not a finite number."""
    parsed = [_parse(value) for value in values]
    _raise(
        [
            f"{line(i)}: {values[i]!r} is not a number."
            for i, value in enumerate(parsed)
            if not isinstance(value, (int, float)) or not math.isfinite(value)
        ],
        where,
    )
    return [float(value) for value in parsed]


def _raise(faults: list[str], where: str) -> None:
    more = [f"… and {len(faults) - SHOWN} more."] if len(faults) > SHOWN else []
    raise_faults(f"The labels of {where} cannot be used:", faults[:SHOWN] + more)


def _sorted_names(found: set) -> tuple[str, ...]:
    numbers = sorted(x for x in found if isinstance(x, int))
    return tuple(map(str, [*numbers, *sorted(x for x in found if not isinstance(x, int))]))


def _parse(value: Any) -> Any:
    """A value as int, float, str, list of them, or None where it is missing."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_parse(x) for x in value]
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip() if value is not None else ""
    if not text:
        return None
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        # "1_000" and "nan" are names; so is "007", which is not how a number is written.
        return number if math.isfinite(number) and "_" not in text and (kind is float or text == str(number)) else text
    return text
