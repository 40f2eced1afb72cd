"""Data sets of masks in folders: `mask_folder:PATH`, and `voc_masks:PATH` (Everingham et al. 2010)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source
from tljax.data.columns import read_file
from tljax.data.files import WHOLE, find_path
from tljax.data.image_folder import SUFFIXES
from tljax.data.roles import choose_split

IMAGES, MASKS = SUFFIXES["image"], (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Masks are in formats that lose nothing."""
MOST_FAULTS = 20
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The numbers in the masks of VOC 2012; 255 marks edges, which do not count."""


class MaskFiles:
    """Records with `image` and `mask` (encoded, read when asked for) and `id`."""

    def __init__(self, pairs: Sequence[tuple[str, Path, Path]]):
        self._pairs = list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, image, mask = self._pairs[int(index)]
        return {"image": read_file(image), "mask": read_file(mask), "id": name}

    def labels(self) -> list[None]:
        """No record has one class; said without reading a file."""
        return [None] * len(self._pairs)


def open_mask_folder(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """`PATH/images/*.jpg` with `PATH/masks/*.png`, of equal names before the dot; or `PATH/SPLIT/images/…` and so on.

    The classes are the lines of `PATH/classes.txt`, in the order of their numbers in the masks; without that file
    `Source.classes` is None, and the task must name them.

    Raises:
      UserError: no such folder or split, an image without a mask or the other way round, names that occur twice.
    """
    where = f"mask_folder:{rest}"
    root = _root(rest, data_dir, columns, where)
    if (root / "images").is_dir():
        choose_split(split, WHOLE, where=where)
        place = root
    else:
        splits = sorted(p.name for p in root.iterdir() if (p / "images").is_dir())
        if not splits:
            raise UserError(f"{where}: there is neither {root / 'images'} nor {root / split / 'images'}.")
        place = root / choose_split(split, splits, where=where)
    images, masks = _by_stem(place / "images", IMAGES), _by_stem(place / "masks", MASKS)
    faults = [f"{images[stem]} has no mask in {place / 'masks'}." for stem in images if stem not in masks]
    faults += [f"{masks[stem]} has no image in {place / 'images'}." for stem in masks if stem not in images]
    faults += [f"{place / 'images'} holds no images ({', '.join(IMAGES)})."] * (not images)
    raise_faults(f"The images and masks of {where} do not fit:", _few(faults))
    pairs = [(stem, images[stem], masks[stem]) for stem in images]
    return Source(MaskFiles(pairs), _names(root, classes), f"{where}/{split}")


def open_voc_masks(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A folder with `JPEGImages/`, `SegmentationClass/*.png` and `ImageSets/Segmentation/SPLIT.txt`.

    The classes are those of `classes.txt`, if there is one, else the 21 of VOC 2012.

    Raises:
      UserError: no such folder or split, images or masks that a split names and that are not there.
    """
    where = f"voc_masks:{rest}"
    root = _root(rest, data_dir, columns, where)
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))}
    if not lists:
        raise UserError(f"{where}: there is no ImageSets/Segmentation/*.txt in {root}.")
    file = lists[choose_split(split, lists, where=where)]
    stems = [line.strip() for line in read_file(file).decode("utf-8").splitlines() if line.strip()]
    images = _by_stem(root / "JPEGImages", IMAGES)
    masks = _by_stem(root / "SegmentationClass", MASKS)
    faults = [f"{stem} has no image in JPEGImages." for stem in stems if stem not in images]
    faults += [f"{stem} has no mask in SegmentationClass." for stem in stems if stem not in masks]
    faults += ["it names no image."] * (not stems)
    raise_faults(f"{file} cannot be used:", _few(faults))
    names = _names(root, classes) or VOC_CLASSES
    return Source(MaskFiles([(stem, images[stem], masks[stem]) for stem in stems]), names, f"{where}/{split}")


def _root(rest: str, data_dir: Any, columns: Any, where: str) -> Path:
    if columns is not None:
        raise UserError(f"{where} has no columns: the folders tell images from masks.")
    root = find_path(rest, data_dir, where=where)
    if not root.is_dir():
        raise UserError(f"{where}: {root} is a file, not a folder.")
    return root


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name before the dot → file, sorted; raises `UserError` where two files share one."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    faults = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file():
            if path.stem in found:
                faults.append(f"{found[path.stem].name} and {path.name} have one name.")
            found[path.stem] = path
    raise_faults(f"The files in {folder} cannot be told apart:", _few(faults))
    return found


def _names(root: Path, classes: Sequence[str] | None) -> tuple[str, ...] | None:
    file = root / "classes.txt"
    if classes is not None or not file.is_file():
        return None if classes is None else tuple(classes)
    names = [line.strip() for line in read_file(file).decode("utf-8-sig").splitlines()]
    while names and not names[-1]:
        names.pop()
    faults = [f"line {i} is empty." for i, name in enumerate(names, 1) if not name]
    faults += [f"line {i} repeats {name!r}." for i, name in enumerate(names, 1) if name and name in names[: i - 1]]
    raise_faults(f"{file} does not name the classes, one a line:", [*faults, *["it is empty."] * (not names)])
    return tuple(names)


def _few(faults: list[str]) -> list[str]:
    more = len(faults) - MOST_FAULTS
    return [*faults[:MOST_FAULTS], *([f"and {more} more."] if more > 0 else [])]
