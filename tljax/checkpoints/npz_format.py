"""NumPy's npz: names with dots or slashes, arrays without pickled objects."""

import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.base.errors import UserError
from tljax.checkpoints.tensors import Format, Tensor, map_bytes, member_start

DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError, RuntimeError)
"""What zipfile and NumPy raise on files that are damaged, encrypted or compressed in an unknown way."""


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file: memory-mapped if stored plainly, as `np.savez` does, else unpacked when they are read.

    A two-byte void is what NumPy writes for bfloat16, and is read as such.

    Raises:
      UserError: a damaged file, and pickled objects, which never run.
    """
    path = Path(path)
    found, objects = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise UserError(f"{path} holds the array {name!r} twice.")
                shape, fortran, dtype, skip = _header(archive, info)
                objects += [name] if dtype.hasobject else []
                read = _reader(path, info, shape, fortran, dtype, skip)
                found[name] = Tensor(shape, dtype, read, str(path))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or not an npz file: {error}") from error
    if objects:
        raise UserError(f"{path}: {', '.join(objects)} hold pickled Python objects, which tljax does not load.")
    return found


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, bytes before the data)."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        skip = file.tell()
    if not dtype.hasobject and info.file_size != skip + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"{info.filename} has {info.file_size - skip} bytes, which do not make {shape} of {dtype}")
    return shape, fortran, np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype, skip


def _reader(path: Path, info: zipfile.ZipInfo, shape: tuple, fortran: bool, dtype: np.dtype, skip: int) -> Any:
    def read() -> np.ndarray:
        if info.compress_type == zipfile.ZIP_STORED:
            content = map_bytes(path, member_start(path, info) + skip, info.file_size - skip)
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    content = np.frombuffer(archive.read(info), np.uint8)[skip:]
            except DAMAGE as error:
                raise UserError(f"{path}: {info.filename} cannot be read: {error}") from error
        return content.view(dtype).reshape(shape, order="F" if fortran else "C")

    return read


FORMAT = Format(open_tensors)
