"""safetensors: one file, or several with an index."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.checkpoints.tensors import Tensor

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Names of the format → dtypes."""


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of the files that an `.index.json` names.

    The library checks header and length when it opens a file. Tensors are views of a memory map.

    Raises:
      UserError: a truncated or tampered file, a shard that is missing, a tensor that its shard does not hold.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            described = {name: file.get_slice(name) for name in names}
            facts = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in described.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error
    offsets = _offsets(path)
    mapped = np.memmap(path, np.uint8, mode="r")
    found = {}
    for name, (shape, kind) in facts.items():
        if kind not in DTYPES:
            raise UserError(f"{path}: the tensor {name!r} has the dtype {kind}. {suggest(kind, DTYPES)}")
        begin, end = offsets[name]
        dtype = np.dtype(DTYPES[kind])
        found[name] = Tensor(shape, dtype, _reader(mapped, begin, end, dtype, shape), str(path))
    return found


def _reader(mapped: np.ndarray, begin: int, end: int, dtype: np.dtype, shape: tuple[int, ...]):
    return lambda: np.asarray(mapped[begin:end]).view(dtype).reshape(shape)


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes stand in the file; the header was checked by the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    start = 8 + length
    return {
        name: tuple(start + offset for offset in entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _open_sharded(index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_text(encoding="utf8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not an index of safetensors shards: {error!r}") from error
    missing = sorted({shard for shard in places.values() if not (index.parent / shard).is_file()})
    if missing:
        raise UserError(f"{index} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not there.")
    shards = {shard: open_tensors(index.parent / shard) for shard in sorted(set(places.values()))}
    faults = [name for name, shard in places.items() if name not in shards[shard]]
    if faults:
        raise UserError(f"{index} places {', '.join(faults[:5])} in shards that do not hold them.")
    return {name: shards[shard][name] for name, shard in places.items()}
