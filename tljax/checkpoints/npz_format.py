"""NumPy's npz: names with dots or slashes, arrays without pickled objects."""

import zipfile
from pathlib import Path

import numpy as np

from tljax.base.errors import UserError
from tljax.checkpoints.tensors import Tensor


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz file. Raises `UserError` for a damaged file and for pickled objects, which never run."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            headers = {name: _header(archive, member) for name, member in members.items()}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or not an npz file: {error}") from error
    objects = [name for name, (_, dtype) in headers.items() if dtype.hasobject]
    if objects:
        raise UserError(f"{path}: {', '.join(objects)} hold pickled Python objects, which tljax does not load.")
    return {name: Tensor(shape, dtype, _reader(path, name), str(path)) for name, (shape, dtype) in headers.items()}


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _reader(path: Path, name: str):
    def read() -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return archive[name]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: the array {name!r} cannot be read: {error}") from error

    return read
