"""Records that are made up: a program can be compiled, and its speed measured, where there are no data."""

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call, lookup, suggest
from tljax.base.types import Source

WORDS = ("the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "it", "are", "from", "this")


class Records(Sequence):
    """`count` records, each a function of the split and its place: nothing is stored.

    Args:
      make: (random numbers) → what a record holds beside its label and id.
      count: number of records.
      classes: the labels come in turn.
      seed: of all records.
    """

    def __init__(self, make: Any, count: int, classes: int, seed: int):
        self._make, self._count, self._classes, self._seed = make, count, classes, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < self._count:
            raise IndexError(i)
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, i], np.uint64)))
        return {"id": i, **self._make(rng), "label": i % self._classes}

    def labels(self) -> list[int]:
        """Those of all records, without making them."""
        return [i % self._classes for i in range(self._count)]


def text(*, words: int = 400, classes: int = 2, count: int = 10_000) -> tuple[Any, int, int]:
    """Texts of `words` common English words, each as likely as the others."""
    return lambda rng: {"text": " ".join(rng.choice(WORDS, words))}, count, classes


def image(*, size: int = 256, classes: int = 2, count: int = 10_000) -> tuple[Any, int, int]:
    """Images of `size` · `size` random pixels in three colours."""
    return lambda rng: {"image": rng.integers(0, 256, (size, size, 3), np.uint8)}, count, classes


KINDS = {"text": "tljax.data.synthetic:text", "image": "tljax.data.synthetic:image"}


def open_synthetic(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """`synthetic:text` or `synthetic:image`, with options: `synthetic:image:classes=1000,size=256,count=1000000`.

    Labels are the numbers of the records modulo `classes`, and no model can learn them from what is random.

    Raises:
      UserError: another kind or option, values that are no whole numbers from 1.
    """
    del data_dir, columns
    name, _, given = rest.partition(":")
    where = f"The source synthetic:{rest}"
    pairs = [part.partition("=") for part in given.split(",") if part]
    raise_faults(
        f"{where} cannot be used:",
        [
            f"{key}{equals}{value} is not of the form NAME=NUMBER, a whole number from 1."
            for key, equals, value in pairs
            if not value.isdecimal() or int(value) < 1
        ],
    )
    if name not in KINDS:
        raise UserError(f"{where}: there is no kind {name!r}. {suggest(name, KINDS)}")
    options = {key: int(value) for key, _, value in pairs}
    make, count, number = call(lookup(KINDS, name, what="kind of record"), (), options, where=f"synthetic:{name}")
    names = tuple(classes) if classes is not None else tuple(f"class{i}" for i in range(number))
    seed = zlib.crc32(f"{split}:{name}".encode())
    return Source(Records(make, count, len(names), seed), names, f"synthetic:{rest}[{split}]")
