"""safetensors: one file, or several with an index."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.checkpoints.tensors import Format, Tensor, open_shards

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
      UserError: a truncated or tampered file, a name that stands twice, an index that its shards do not match.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return open_shards(path, open_tensors)
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
    """Where each tensor's bytes stand in the file; lengths and ranges were checked by the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _without_repeats(pairs, path))
    start = 8 + length
    return {
        name: tuple(start + offset for offset in entry["data_offsets"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _without_repeats(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    # The library keeps one of two tensors of the same name, and does not say so.
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else ()
    raise_faults(f"{path} is damaged:", [f"its header names {name!r} twice." for name in repeated])
    return dict(pairs)


FORMAT = Format(open_tensors)
