"""torch archives (.pt, .pth, .bin, .th), read without executing anything that they hold.

Two layouts: the zip of torch 1.6 and later, and the stream of pickles before it. Both name tensors by small pickles;
the unpickler here knows tensors, storages, ordered dicts and plain values, and refuses every other name.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.base.errors import UserError
from tljax.checkpoints.tensors import Format, Tensor, map_bytes, member_start

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
"""torch's dtypes → ours."""

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
"""torch's storages → their dtypes."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the tensors."""


class _Storage(NamedTuple):
    """A named piece of the archive: its dtype, number of elements, and () → its bytes."""

    dtype: np.dtype
    count: int
    read: Callable[[], np.ndarray]


class _Named(NamedTuple):
    """A dtype that stands in a pickle by its name."""

    dtype: np.dtype


class _Rebuild(NamedTuple):
    """What stands for one of torch's functions. A pickle may set attributes of what it names; a tuple has none."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Dict(dict):
    """What stands for an ordered dict; a state, such as the `_metadata` of a state dict, is passed over."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Refuses every global name that is not needed to describe tensors."""

    def __init__(self, file: Any, path: Path, storage: Callable[[np.dtype, str, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if module == "torch._utils" and name in REBUILD:
            return _Rebuild(REBUILD[name])
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _Named(np.dtype(DTYPES[STORAGES[name]]))
        if module == "torch" and name in DTYPES:
            return _Named(np.dtype(DTYPES[name]))
        raise UserError(
            f"{self._path} asks for {module}.{name}, which is not a tensor or a plain value. tljax never runs code "
            "from a checkpoint. Save only the state_dict, best as safetensors."
        )

    def persistent_load(self, identity: Any) -> _Storage:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise UserError(f"{self._path}: {identity!r} is not a reference to a storage.")
        _, kind, key, _, count, *view = identity
        if any(part is not None for part in view):
            raise UserError(f"{self._path}: it holds views of storages, which torch has not written since 0.4.")
        return self._storage(kind.dtype, str(key), _whole(count))


def _whole(*numbers: Any) -> Any:
    """The one number given, or the tuple of them, if they are whole and not negative."""
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError(f"{number!r} stands where a count belongs")
    return numbers[0] if len(numbers) == 1 else numbers


def _tensor(storage: _Storage, dtype: np.dtype, offset: int, size: tuple, stride: tuple, metadata: Any) -> Tensor:
    """A tensor over a storage; offset and strides in elements."""
    if metadata:
        # Conjugate and negative views keep their sign in the metadata.
        raise UserError(f"A tensor with the metadata {metadata!r} cannot be read.")
    for number in (offset, *size, *stride):
        _whole(number)
    if len(size) != len(stride):
        raise ValueError(f"a tensor has the shape {size} and the strides {stride}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if all(size) and (last + 1) * dtype.itemsize > storage.count * storage.dtype.itemsize:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")

    def read() -> np.ndarray:
        if not all(size):
            return np.empty(size, dtype)
        content = storage.read()[offset * dtype.itemsize : (last + 1) * dtype.itemsize].view(dtype)
        strides = tuple(s * dtype.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(content, size, strides, writeable=False)

    return Tensor(tuple(size), dtype, read, "")


def _rebuild(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> Tensor:
    return _tensor(storage, storage.dtype, offset, size, stride, metadata)


def _rebuild_v3(storage, offset, size, stride, requires_grad, hooks, kind, metadata=None) -> Tensor:
    return _tensor(storage, kind.dtype, offset, size, stride, metadata)


REBUILD = {
    "_rebuild_tensor": _rebuild,
    "_rebuild_tensor_v2": _rebuild,
    "_rebuild_tensor_v3": _rebuild_v3,
    "_rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
}
"""The functions of torch._utils that a pickle may name → what is called for them."""


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
        pairs = list(_tensors(_state(content)))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    # A pickle that somebody changed can raise anything; whatever it is, the file is at fault.
    except Exception as error:
        raise UserError(f"{path} is damaged or not a torch archive: {error!r}") from error
    if not pairs:
        raise UserError(f"{path} holds no tensors; its keys are {list(content) if isinstance(content, dict) else []}.")
    if all(name.startswith("module.") for name, _ in pairs):
        pairs = [(name.removeprefix("module."), tensor) for name, tensor in pairs]
    tensors = {name: tensor._replace(file=str(path)) for name, tensor in pairs}
    if len(tensors) < len(pairs):
        raise UserError(f"{path} holds several tensors of the same name.")
    return tensors


def _state(content: Any) -> Any:
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        for key in STATE_KEYS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))


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

        def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
            info = infos[f"{root}data/{key}"]
            if info.file_size != count * dtype.itemsize:
                raise ValueError(f"the storage {key} has {info.file_size} bytes and not {count * dtype.itemsize}")
            return _Storage(dtype, count, lambda: _member(path, info))

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), path, storage).load()


def _member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a zip member: mapped if they are stored plainly, as torch does."""
    if info.compress_type == zipfile.ZIP_STORED:
        return map_bytes(path, member_start(path, info), info.file_size)
    try:
        with zipfile.ZipFile(path) as archive:
            return np.frombuffer(archive.read(info), np.uint8)
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        raise UserError(f"{path} is damaged: {info.filename}: {error}") from error


def _open_legacy(path: Path) -> Any:
    """Five pickles (magic, protocol, system, content, storage keys), then for each storage its count and elements."""
    places: dict[str, int] = {}
    storages: dict[str, _Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        found = _Storage(dtype, count, lambda: map_bytes(path, places[key], count * dtype.itemsize))
        return storages.setdefault(key, found)

    with path.open("rb") as file:
        if _Unpickler(file, path, storage).load() != LEGACY_MAGIC:
            raise UserError(f"{path} is not a torch archive.")
        _, system, content, keys = (_Unpickler(file, path, storage).load() for _ in range(4))
        if not system.get("little_endian", True):
            raise UserError(f"{path} was written on a big-endian machine, which is not supported.")
        size = path.stat().st_size
        for key in map(str, keys):
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            end = places[key] + count * storages[key].dtype.itemsize
            if count != storages[key].count or end > size:
                raise ValueError(f"the storage {key} is not whole")
            file.seek(end)
    if lost := storages.keys() - places.keys():
        raise ValueError(f"the storages {', '.join(sorted(lost))} are missing")
    return content


FORMAT = Format(open_tensors)
