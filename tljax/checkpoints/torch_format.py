"""torch archives (.pt, .pth, .bin, .th), read without executing anything that they hold.

Two layouts: the zip of torch 1.6 and later, and the stream of pickles before it. Both name tensors by small pickles; the
unpickler here knows tensors, storages, ordered dicts and plain values, and refuses every other name.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.base.errors import UserError
from tljax.checkpoints.tensors import Tensor

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""torch's typed storages → dtypes."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the tensors."""


class _Storage(NamedTuple):
    """A named piece of the archive; `read` gives its elements."""

    dtype: np.dtype
    read: Callable[[], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """Refuses every global name that is not needed to describe tensors."""

    def __init__(self, file: Any, path: Path, storage: Callable[[np.dtype, str, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in REBUILD:
            return REBUILD[name]
        if module in ("torch", "torch.storage") and name in DTYPES:
            return _Kind(name)
        raise UserError(
            f"{self._path} asks for {module}.{name}, which is not a tensor or a plain value. tljax never runs code "
            "from a checkpoint. Save only the state_dict, best as safetensors."
        )

    def persistent_load(self, identity: Any) -> _Storage:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise UserError(f"{self._path}: {identity!r} is not a reference to a storage.")
        _, kind, key, _, count, *view = identity
        if any(part is not None for part in view):
            raise UserError(f"{self._path}: views of storages are not supported.")
        return self._storage(np.dtype(DTYPES[kind.name]), key, count)


class _Kind(NamedTuple):
    name: str


def _rebuild(storage: _Storage, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """A tensor over a storage; `rest` is requires_grad, hooks and metadata."""
    if len(rest) > 2 and rest[2]:
        # Conjugate and negative views keep their sign in the metadata.
        raise UserError(f"A tensor with the metadata {rest[2]!r} cannot be read.")

    def read() -> np.ndarray:
        flat = storage.read()[offset:]
        strides = tuple(s * storage.dtype.itemsize for s in stride)
        furthest = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else -1
        if furthest >= len(flat) or min(stride, default=0) < 0:
            raise UserError("A tensor reaches beyond its storage; the file is damaged.")
        return np.lib.stride_tricks.as_strided(flat, size, strides, writeable=False)

    return Tensor(tuple(size), storage.dtype, read, "")


def _rebuild_v3(storage: _Storage, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """As `_rebuild`, for storages without a type of their own: the dtype stands behind requires_grad and hooks."""
    raise UserError("Tensors of dtypes without a typed storage (uint16, float8 …) are not supported.")


REBUILD = {
    "_rebuild_tensor": _rebuild,
    "_rebuild_tensor_v2": _rebuild,
    "_rebuild_tensor_v3": _rebuild_v3,
    "_rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
}


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch archive, by name.

    A dict of tensors, or one under `state_dict` or `model`; nested dicts give dotted names; `module.`, which
    DataParallel puts before every name, is taken off.

    Raises:
      UserError: the file is damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    try:
        content = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is damaged or not a torch archive: {error!r}") from error
    except (AttributeError, TypeError, ImportError) as error:
        raise UserError(f"{path} is not a torch archive of tensors: {error!r}") from error
    tensors = dict(_named(_state(content)))
    if not tensors:
        raise UserError(f"{path} holds no tensors; its keys are {list(content) if isinstance(content, dict) else []}.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name: tensor._replace(file=str(path)) for name, tensor in tensors.items()}


def _state(content: Any) -> Any:
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        for key in STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _named(tree: Any, prefix: str = ""):
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _named(value, f"{prefix}.{key}" if prefix else str(key))


def _open_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in infos if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip file, but not a torch archive: it has no data.pkl.")
        root = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in infos else b"little"
        if order.strip() != b"little":
            raise UserError(f"{path} was written with the byte order {order.decode()!r}; only 'little' is supported.")
        starts = {name: _data_start(path, info) for name, info in infos.items()}

        def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
            info = infos[f"{root}data/{key}"]
            if info.file_size != count * dtype.itemsize:
                raise UserError(
                    f"{path}: the storage {key} has {info.file_size} bytes and not {count * dtype.itemsize}."
                )
            return _Storage(dtype, lambda: _zip_elements(path, info, starts[info.filename], dtype))

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storage).load()


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: its local header has lengths of its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name_length + extra_length


def _zip_elements(path: Path, info: zipfile.ZipInfo, start: int, dtype: np.dtype) -> np.ndarray:
    if info.file_size == 0:
        return np.empty(0, dtype)
    if info.compress_type == zipfile.ZIP_STORED:
        return np.memmap(path, np.uint8, "r", start, info.file_size).view(dtype)
    with zipfile.ZipFile(path) as archive:
        return np.frombuffer(archive.read(info.filename), dtype)


def _open_legacy(path: Path) -> Any:
    """Five pickles (magic, protocol, system, content, storage keys), then for each storage its count and elements."""
    places: dict[str, int] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        def read() -> np.ndarray:
            return np.memmap(path, np.uint8, "r", places[key], count * dtype.itemsize).view(dtype)

        sizes[key] = (count, dtype.itemsize)
        return _Storage(dtype, read if count else lambda: np.empty(0, dtype))

    sizes: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        unpickle = lambda: _Unpickler(file, path, storage).load()  # noqa: E731
        if unpickle() != LEGACY_MAGIC:
            raise UserError(f"{path} is not a torch archive.")
        unpickle()
        system = unpickle()
        if not system.get("little_endian", True):
            raise UserError(f"{path} was written on a big-endian machine, which is not supported.")
        content = unpickle()
        for key in unpickle():
            (count,) = np.frombuffer(file.read(8), np.int64)
            expected, itemsize = sizes[key]
            places[key] = file.tell()
            if count != expected or places[key] + count * itemsize > path.stat().st_size:
                raise UserError(f"{path} is damaged: the storage {key} is not whole.")
            file.seek(count * itemsize, io.SEEK_CUR)
    return content
