"""A store as a source of data and its processor: the streams read it as they read texts and images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.features.store import Field, Store, dtype


class Records(Sequence):
    """The records of a store: what was stored of each example, its label and its id.

    Where it holds several versions of them, version v of record i is record v · (number of records) + i.
    """

    def __init__(self, store: Store, labels: Sequence[Any], ids: Sequence[Any]):
        self._store, self._labels, self._ids = store, labels, ids

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        own = i % len(self._labels)
        return {"carry": self._store[i], "label": self._labels[own], "id": self._ids[own]}


@dataclasses.dataclass(frozen=True)
class StoredProcessor:
    """Puts stored examples together. See `tljax.data.processors` for what its members mean.

    Attributes:
      fields: key → `Field`.
      lengths: the lengths that a batch may have, ascending; () where examples have none.
    """

    fields: Mapping[str, Field]
    lengths: tuple[int, ...] = ()

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The arrays of one example; nothing is random."""
        return record["carry"]

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Its length; 0 where it has none."""
        for key, field in self.fields.items():
            if -1 in field.shape:
                return example[key].shape[field.shape.index(-1)]
        return 0

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays (B, …), padded to one of the lengths."""
        longest = max(map(self.size_of, examples))
        length = next((n for n in self.lengths if n >= longest), longest)
        return {key: self._stacked(key, [example[key] for example in examples], length) for key in self.fields}

    def _stacked(self, key: str, arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
        field = self.fields[key]
        if -1 not in field.shape:
            return np.stack(arrays)
        batch = np.full((len(arrays), *field.shape_at(length)), field.fill, dtype(field.given))
        for row, array in zip(batch, arrays, strict=True):
            row[tuple(slice(0, n) for n in array.shape)] = array
        return batch

    def fixed_shape(self) -> "StoredProcessor":
        """With the greatest length for all batches."""
        return dataclasses.replace(self, lengths=self.lengths[-1:])

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result."""
        return {"fields": {key: field._asdict() for key, field in self.fields.items()}, "lengths": self.lengths}
