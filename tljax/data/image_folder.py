"""Sources that are folders of images or sounds, one folder a class: `image_folder:PATH`, `audio_folder:PATH`."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.audio import SUFFIXES as SOUNDS
from tljax.data.columns import read_file
from tljax.data.files import WHOLE, find_path
from tljax.data.roles import choose_split

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    "audio": SOUNDS,
}
"""What a record holds → the files that are so."""


class ClassFiles:
    """Encoded images or sounds, read when they are asked for; `id` is the path below the folder of the source."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int], role: str):
        self._root, self._paths, self._labels, self._role = root, list(paths), list(labels), role

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        return {self._role: read_file(self._root / path), "label": self._labels[index], "id": path}

    def labels(self) -> list[int]:
        """All labels, without reading a file."""
        return list(self._labels)


def _open(
    rest: str,
    *,
    role: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """`PATH/CLASS/file.jpg`, or `PATH/SPLIT/CLASS/file.jpg`; the classes are those of all splits, sorted.

    Raises:
      UserError: no such folder or split, a folder without such files, a class folder that `classes` does not name.
    """
    where, suffixes = f"{role}_folder:{rest}", SUFFIXES[role]
    if columns is not None:
        raise UserError(f"{where} has no columns: the folders tell the classes by themselves.")
    root = find_path(rest, data_dir, where=where)
    if not root.is_dir():
        raise UserError(f"{where}: {root} is a file, not a folder.")
    folders = _folders(root)
    splits = [f for f in folders if not _files(f, suffixes) and _folders(f)]
    if splits and len(splits) == len(folders):
        place = root / choose_split(split, [f.name for f in splits], where=where)
        found = sorted({f.name for s in splits for f in _folders(s)})
    else:
        choose_split(split, WHOLE, where=where)
        place, found = root, [f.name for f in folders]
    names = tuple(classes) if classes is not None else tuple(found)
    faults = [f"{name!r} is not one of the classes. {suggest(name, names)}" for name in found if name not in names]
    raise_faults(f"The class folders of {where} do not fit:", faults)
    paths, labels = [], []
    for label, name in enumerate(names):
        files = _files(place / name, suffixes)
        paths += [path.relative_to(root).as_posix() for path in files]
        labels += [label] * len(files)
    if not paths:
        raise UserError(
            f"{place} holds no {'images' if role == 'image' else 'sounds'} in class folders ({', '.join(suffixes)})."
        )
    return Source(ClassFiles(root, paths, labels, role), names, f"{where}/{split}")


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files with these suffixes directly in `folder`, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())


open_image_folder = partial(_open, role="image")
open_audio_folder = partial(_open, role="audio")
