"""Examples on disk: a file of numbers for each key, memory-mapped; examples may differ in length.

A store is written into a folder of its own and renamed when it is whole, so a writer that was killed, or a disk that
was full, leaves nothing that could be taken for a store.
"""

import contextlib
import errno
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.base.errors import RunError

INDEX, PLACES, WRITING = "index.json", "places.bin", "writing-"
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
"""What the system says of a folder that cannot be renamed because another one stands there."""
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Dtypes that NumPy does not know by name."""


class Field(NamedTuple):
    """What an example has under one key.

    Attributes:
      shape: of one example, −1 where its length stands.
      dtype: as it is stored.
      given: the dtype that is handed out.
      fill: what an example is padded with.
    """

    shape: tuple[int, ...]
    dtype: str
    given: str
    fill: float = 0.0

    def shape_at(self, length: int) -> tuple[int, ...]:
        """The shape of an example of that length."""
        return tuple(length if n < 0 else n for n in self.shape)

    def size_at(self, lengths: Any) -> Any:
        """The numbers in examples of these lengths."""
        fixed = int(np.prod([n for n in self.shape if n >= 0], dtype=np.int64))
        return fixed * lengths ** sum(n < 0 for n in self.shape)


class Store:
    """A stored data set. A class because it owns memory-mapped files.

    Args:
      folder: that `write` made.

    Attributes:
      fields: key → `Field`.
      lengths: of the examples, (N,); 1 where no field has one.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = json.loads((self.folder / INDEX).read_text(encoding="utf8"))
        self.fields = {
            key: Field(**{**field, "shape": tuple(field["shape"])}) for key, field in index["fields"].items()
        }
        self._open()

    def _open(self) -> None:
        # In the order of writing; an example's own numbers stand at its place in that order.
        order, lengths = np.fromfile(self.folder / PLACES, np.int64).reshape(-1, 2).T
        self._places = np.empty_like(order)
        self._places[order] = np.arange(len(order))
        self.lengths, self._starts, self._files = lengths[self._places], {}, {}
        for key, field in self.fields.items():
            self._starts[key] = np.concatenate([[0], np.cumsum(field.size_at(lengths))])
            self._files[key] = np.memmap(self.folder / f"{key}.bin", dtype(field.dtype), mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Without the files: a worker maps its own."""
        return {"folder": self.folder, "fields": self.fields}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """The arrays of example `i`, not yet padded."""
        length, found = int(self.lengths[i]), {}
        for key, field in self.fields.items():
            place = self._places[i]
            start, stop = self._starts[key][place : place + 2]
            found[key] = self._files[key][start:stop].reshape(field.shape_at(length)).astype(dtype(field.given))
        return found

    @property
    def bytes(self) -> int:
        """What the store takes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def dtype(name: str) -> np.dtype:
    """The dtype of that name."""
    return DTYPES.get(name) or np.dtype(name)


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a store with files of the sizes that its index says."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf8"))
        return all((folder / name).stat().st_size == size for name, size in index["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def write(
    folder: Path, fields: Mapping[str, Field], count: int, examples: Iterable[tuple[int, int, Mapping[str, np.ndarray]]]
) -> Store:
    """Writes a store of `examples` into `folder` and opens it; one that stands there whole is opened as it is.

    Args:
      folder: whole afterwards; what stands there and is not whole is removed.
      fields: of every example.
      count: of the examples.
      examples: (position, length, arrays), each of the `count` positions once, in any order.

    Raises:
      RunError: the disk is full or cannot be written, and nothing is left behind.
    """
    folder = Path(folder)
    if is_whole(folder):
        return Store(folder)
    temporary = folder.parent / f"{WRITING}{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        _fill(temporary, fields, count, examples)
        files = {path.name: path.stat().st_size for path in temporary.iterdir()}
        index = {"fields": {key: field._asdict() for key, field in fields.items()}, "files": files}
        (temporary / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf8")
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in TAKEN:
                raise  # otherwise another process was faster, and its store is as good
        return Store(folder)
    except OSError as error:
        raise RunError(
            f"The features could not be stored in {folder} ({error}). Make room there, name another folder in "
            "config.train.cache, or set it to 'off'."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    folder: Path, fields: Mapping[str, Field], count: int, examples: Iterable[tuple[int, int, Mapping[str, np.ndarray]]]
) -> None:
    places = []
    with contextlib.ExitStack() as stack:
        files = {key: stack.enter_context((folder / f"{key}.bin").open("wb")) for key in fields}
        for position, length, arrays in examples:
            places.append((position, length))
            for key, field in fields.items():
                if arrays[key].shape != field.shape_at(length):
                    raise ValueError(f"{key} of example {position} has the shape {arrays[key].shape}, and not {field}")
                # Written and not mapped: a full disk is an error then, and not a signal.
                files[key].write(np.ascontiguousarray(arrays[key], dtype(field.dtype)).tobytes())
    if sorted(position for position, _ in places) != list(range(count)):
        raise ValueError(f"{len(places)} examples were given for {count} positions")
    np.asarray(places, np.int64).tofile(folder / PLACES)
