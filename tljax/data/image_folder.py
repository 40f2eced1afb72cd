"""Sources that are folders of images, one folder a class: `image_folder:PATH`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.columns import read_file
from tljax.data.files import WHOLE, find_path
from tljax.data.roles import choose_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class ImageFiles:
    """Encoded images, read when they are asked for; `id` is the path below the folder of the source."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int]):
        self._root, self._paths, self._labels = root, list(paths), list(labels)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._paths[index]
        return {"image": read_file(self._root / path), "label": self._labels[index], "id": path}

    def labels(self) -> list[int]:
        """All labels, without reading an image."""
        return list(self._labels)


def open_image_folder(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """`PATH/CLASS/image.jpg`, or `PATH/SPLIT/CLASS/image.jpg`; the classes are those of all splits, sorted.

    Raises:
      UserError: no such folder or split, a folder without images, a class folder that `classes` does not name.
    """
    where = f"image_folder:{rest}"
    if columns is not None:
        raise UserError(f"{where} has no columns: an image folder tells image and label by itself.")
    root = find_path(rest, data_dir, where=where)
    if not root.is_dir():
        raise UserError(f"{where}: {root} is a file, not a folder.")
    folders = _folders(root)
    splits = [f for f in folders if not _images(f) and _folders(f)]
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
        images = _images(place / name)
        paths += [path.relative_to(root).as_posix() for path in images]
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{place} holds no images in class folders ({', '.join(SUFFIXES)}).")
    return Source(ImageFiles(root, paths, labels), names, f"{where}/{split}")


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """The images directly in `folder`, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
