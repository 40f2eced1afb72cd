"""Parts of a source, chosen by seed: classes, few-shot, held-out, limited; and the weights that balance classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.records import read_labels, read_many

TAKES = ("rest", "held_out")
HOLD_OUT, ORDER, SHOTS = range(3)
"""What a random choice is for: each has its own numbers, so that one choice does not move another."""


class Selection:
    """Some records of others, in their order, with other numbers for the classes where `relabel` says so."""

    def __init__(self, records: Any, indices: np.ndarray, relabel: dict[int, int] | None):
        self._records, self._indices, self._relabel = records, np.asarray(indices, np.int64), relabel

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        found = read_many(self._records, self._indices[indices])
        if self._relabel is None:
            return found
        return [{**record, "label": self._relabel[record["label"]]} for record in found]

    def labels(self) -> list[Any]:
        """All labels, as cheaply as the records below allow."""
        found = read_labels(self._records)
        picked = [found[i] for i in self._indices]
        return picked if self._relabel is None else [self._relabel[label] for label in picked]


def labels_of(source: Source) -> np.ndarray | None:
    """The labels of a source, (records,): int64 for classes, float64 for scores; an object array for lists; or None.

    Raises:
      UserError: some records have labels and others have none.
    """
    found = read_labels(source.records)
    missing = sum(label is None for label in found)
    if missing == len(found):
        return None
    if missing:
        raise UserError(f"{source.name}: {missing} of {len(found)} records have no label.")
    if any(isinstance(label, (list, tuple, np.ndarray)) for label in found):
        labels = np.empty(len(found), object)
        labels[:] = found
        return labels
    return np.asarray(found, np.float64 if any(isinstance(x, (float, np.floating)) for x in found) else np.int64)


def subset(
    source: Source,
    *,
    classes: Sequence[str | int] | None = None,
    shots_per_class: int | None = None,
    hold_out: float | int | None = None,
    take: str = "rest",
    skip: int = 0,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """A view of `source`, in its order. The choices are made in the order of the arguments below.

    Args:
      source: a split.
      classes: keep these classes, by name or number, and number them in this order.
      hold_out: a share (below 1) or a number of records to set apart, stratified by class where labels are classes.
      take: "rest", or "held_out": with equal `classes`, `hold_out` and `seed` the two are complements.
      skip: leave out that many records of what is taken, at random.
      shots_per_class: keep that many records of each class, at random.
      limit: keep that many records, at random; `limit=n` and `skip=n` are complements.
      seed: of all choices. The same on all platforms and numpy versions.

    Raises:
      UserError: unknown classes, numbers out of range, too few records of a class.
    """
    _check(take, skip, shots_per_class, limit)
    choices = dict(classes=classes, hold_out=hold_out, take=take, skip=skip, shots=shots_per_class, limit=limit)
    plain = dict(classes=None, hold_out=None, take="rest", skip=0, shots=None, limit=None)
    changed = {name: value for name, value in choices.items() if value != plain[name]}
    if not changed:
        return source
    count = len(source.records)
    needs_labels = classes is not None or shots_per_class is not None or hold_out is not None
    labels = labels_of(source) if needs_labels else None
    names, indices, relabel = source.classes, np.arange(count), None
    if classes is not None:
        wanted = _class_numbers(source, labels, classes)
        names = tuple(source.classes[n] for n in wanted) if source.classes is not None else None
        relabel = {number: place for place, number in enumerate(wanted)}
        indices = indices[np.isin(labels, wanted)]
    if hold_out is not None:
        held = _held_out(source, labels, indices, hold_out, seed)
        indices = indices[held] if take == "held_out" else indices[~held]
    order = _shuffled(len(indices), seed, ORDER)[skip:]
    if shots_per_class is not None:
        numbers = list(relabel) if relabel is not None else None
        order = _few(source, None if labels is None else labels[indices], order, shots_per_class, numbers, seed)
    indices = np.sort(indices[order[:limit]])
    if not len(indices):
        raise UserError(f"Nothing is left of the {count} records of {source.name} after {changed}.")
    described = ", ".join(f"{name}={value}" for name, value in changed.items())
    return Source(Selection(source.records, indices, relabel), names, f"{source.name}[{described}, seed={seed}]")


def class_weights(source: Source) -> np.ndarray:
    """A weight a class, (Y,) float32, so that all classes weigh the same: records / (classes · records of the class).

    A class without records has weight 0.
    """
    labels = labels_of(source)
    if labels is None or labels.dtype != np.int64 or source.classes is None:
        raise UserError(f"{source.name}: class weights need one class a record.")
    counts = np.bincount(labels, minlength=len(source.classes))
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


def _check(take: str, skip: int, shots: int | None, limit: int | None) -> None:
    faults = [] if take in TAKES else [f"take is {take!r}. {suggest(take, TAKES)}"]
    for name, value, least in (("skip", skip, 0), ("shots_per_class", shots, 1), ("limit", limit, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            faults.append(f"{name} is {value!r}, and must be a whole number from {least}.")
    raise_faults("The subset cannot be taken:", faults)


def _shuffled(count: int, seed: int, purpose: int) -> np.ndarray:
    """A permutation that depends on the raw bits of PCG64 alone, which no numpy version may change."""
    generator = np.random.PCG64(np.random.SeedSequence([seed, purpose]))
    return np.argsort(generator.random_raw(count), kind="stable")


def _class_numbers(source: Source, labels: np.ndarray | None, classes: Sequence[str | int]) -> list[int]:
    if labels is None or labels.dtype != np.int64:
        raise UserError(f"{source.name}: classes can only be chosen where each record has one class.")
    names = source.classes or tuple(map(str, range(int(labels.max()) + 1)))
    numbers, faults = [], []
    for wanted in classes:
        if isinstance(wanted, str) and wanted in names:
            numbers.append(names.index(wanted))
        elif isinstance(wanted, int) and 0 <= wanted < len(names):
            numbers.append(wanted)
        else:
            faults.append(f"there is no class {wanted!r}. {suggest(str(wanted), names)}")
    if len(set(numbers)) < len(numbers):
        faults.append(f"a class stands twice in {list(classes)}.")
    raise_faults(f"The classes of {source.name} cannot be chosen:", faults)
    return numbers


def _held_out(source: Source, labels: np.ndarray | None, indices: np.ndarray, hold_out: float, seed: int) -> np.ndarray:
    """Which of `indices` are held out, as booleans; each class gives its share, rounded so that the total is right."""
    count = len(indices)
    if isinstance(hold_out, bool) or not (0 < hold_out < count) or (hold_out > 1 and hold_out != int(hold_out)):
        raise UserError(
            f"hold_out is {hold_out!r}; of the {count} records of {source.name} it must leave some: a share below 1, "
            "or a number."
        )
    share = hold_out / count if hold_out >= 1 else hold_out
    total = min(max(round(share * count), 1), count - 1)
    if labels is not None and labels.dtype == np.int64:
        kept = labels[indices]
    else:
        kept = np.zeros(count, np.int64)
    groups = [np.flatnonzero(kept == label) for label in np.unique(kept)]
    exact = np.array([len(group) * total / count for group in groups])
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    rank = np.empty(count, np.int64)
    rank[_shuffled(count, seed, HOLD_OUT)] = np.arange(count)
    held = np.zeros(count, bool)
    for group, number in zip(groups, counts, strict=True):
        held[group[np.argsort(rank[group], kind="stable")[:number]]] = True
    return held


def _few(
    source: Source, labels: np.ndarray | None, order: np.ndarray, shots: int, numbers: list[int] | None, seed: int
) -> np.ndarray:
    """`shots` of `order` for each class (of `numbers`, or all), at random; `limit` then takes from all classes."""
    if labels is None or labels.dtype != np.int64:
        raise UserError(f"{source.name}: shots_per_class needs one class a record.")
    order = np.sort(order)
    order = order[_shuffled(len(order), seed, SHOTS)]
    names = source.classes
    picked, faults = [], []
    if numbers is None:
        numbers = range(len(names)) if names is not None else np.unique(labels[order])
    for label in numbers:
        found = order[labels[order] == label]
        if len(found) < shots:
            faults.append(f"{names[label] if names else label!r} has {len(found)}, and {shots} are asked for.")
        picked.append(found[:shots])
    raise_faults(f"{source.name} has too few records of some classes:", faults)
    return order[np.isin(order, np.concatenate(picked))]
