"""A tensor of a foreign file, not yet read; and what several formats share: zip members, shards with an index."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tljax.base.errors import UserError, raise_faults


class Tensor(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
      shape: as stored.
      dtype: as stored.
      read: () → array; memory-mapped where the format allows it, so treat it as read-only.
      file: where it stands, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: str


class Format(NamedTuple):
    """A foreign file format.

    Attributes:
      open: path → {tensor name: `Tensor`}, read lazily.
      describe: (path, its tensors) → entries of config.json that the file itself tells.
      processor: (path, its tensors, the processor of the folder or None) → processor.
      writer: (model, variables, class names) → function that fills a folder, after what cannot be written was refused;
        for the formats of `WRITTEN_IN`.
    """

    open: Callable[[Path], "dict[str, Tensor]"]
    describe: Callable[[Path, "dict[str, Tensor]"], dict[str, Any]] = lambda path, tensors: {}
    processor: Callable[[Path, "dict[str, Tensor]", Any], Any] = lambda path, tensors, found: found
    writer: Callable[..., Callable[[Path], None]] | None = None


def map_bytes(path: Path, start: int, size: int) -> np.ndarray:
    """The bytes [start, start + size) of a file as a memory map; a plain empty array for none of them."""
    return np.memmap(path, np.uint8, "r", start, (size,)) if size else np.empty(0, np.uint8)


def member_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a zip member begin in the file: its local header has lengths of its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name_length + extra_length


def open_shards(index: Path, open_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the files that an `.index.json` names.

    Args:
      index: holds `weight_map`, tensor name → file beside it.
      open_file: opens one of them.

    Raises:
      UserError: no such index, files that are missing or elsewhere, and wherever index and files disagree.
    """
    try:
        places = json.loads(index.read_text(encoding="utf8"))["weight_map"]
        files = sorted(set(places.values()))
        outside = [name for name in files if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards: {error!r}") from error
    missing = [name for name in files if name not in outside and not (index.parent / name).is_file()]
    faults = [f"it names {name!r}, which is not a file beside it." for name in outside]
    faults += [f"it names {name}, which is not there." for name in missing]
    raise_faults(f"{index} cannot be used:", faults)
    shards = {name: open_file(index.parent / name) for name in files}
    faults += [
        f"it places {tensor} in {name}, which does not hold it."
        for tensor, name in places.items()
        if tensor not in shards[name]
    ]
    faults += [
        f"{name} holds {tensor}, which the index {'places in ' + places[tensor] if tensor in places else 'leaves out'}."
        for name, shard in shards.items()
        for tensor in shard
        if places.get(tensor) != name
    ]
    raise_faults(f"{index} and its shards disagree:", faults)
    return {tensor: shards[name][tensor] for tensor, name in places.items()}
