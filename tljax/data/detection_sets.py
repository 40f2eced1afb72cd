"""Data sets of boxes in two published formats: `voc:PATH` (Everingham et al. 2010), `coco:PATH` (Lin et al. 2014)."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.columns import read_file
from tljax.data.detection import fault_of
from tljax.data.files import WHOLE, find_path, split_files
from tljax.data.roles import choose_split

MOST_FAULTS = 20
HOW = ("exact", "cut")
"""What may be asked of `columns["boxes"]`."""


class Thing(NamedTuple):
    """An object in an image.

    Attributes:
      name: its class.
      box: x0, y0, x1, y1 in pixels from the upper left corner.
      ignore: difficult (VOC) or a crowd (COCO): neither found nor missed counts.
    """

    name: str
    box: tuple[float, float, float, float]
    ignore: bool


class Picture(NamedTuple):
    """An annotated image: where its file is, what it is called, (width, height), and what is on it."""

    path: Path
    name: str
    size: tuple[int, int]
    things: tuple[Thing, ...]


class PictureRecords:
    """Records with `image` (encoded, read when asked for), `boxes`, `labels`, `ignore` and `id`."""

    def __init__(self, pictures: Sequence[Picture], classes: Sequence[str]):
        self._pictures, self._number = list(pictures), {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self._pictures[int(index)]
        return {
            "id": picture.name,
            "image": read_file(picture.path),
            "boxes": np.array([thing.box for thing in picture.things], np.float32).reshape(-1, 4),
            "labels": np.array([self._number[thing.name] for thing in picture.things], np.int64),
            "ignore": np.array([thing.ignore for thing in picture.things], bool),
        }


def parse_voc(content: bytes, where: str) -> tuple[str, tuple[int, int], tuple[Thing, ...]]:
    """(file name of the image, (width, height), its objects) of one annotation.

    VOC counts pixels from 1 and means both corners: xmin … xmax becomes xmin − 1 … xmax.

    Raises:
      UserError: no such XML, a document type (entities may hide anything), missing or odd numbers.
    """

    def refuse(*_: Any) -> None:
        raise UserError(f"{where} declares a document type, which an annotation has no need of.")

    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = refuse
    try:
        checker.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise UserError(f"{where} is not XML: {error}.") from error

    def text(node: ElementTree.Element, path: str) -> str:
        value = node.findtext(path)
        if value is None:
            raise UserError(f"{where} has no {path} in its <{node.tag}>.")
        return value.strip()

    def number(node: ElementTree.Element, path: str) -> float:
        value = text(node, path)
        try:
            return float(value)
        except ValueError as error:
            raise UserError(f"{where}: {path} is {value!r}, and must be a number.") from error

    things = []
    for node in root.findall("object"):
        x0, y0, x1, y1 = (number(node, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
        ignore = node.findtext("difficult", "0").strip() == "1"
        things.append(Thing(text(node, "name"), (x0 - 1, y0 - 1, x1, y1), ignore))
    return text(root, "filename"), (int(number(root, "size/width")), int(number(root, "size/height"))), tuple(things)


def open_voc(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A folder with `Annotations/*.xml`, `JPEGImages/` and, where there are splits, `ImageSets/Main/SPLIT.txt`.

    Args:
      columns: {"boxes": "cut"} cuts boxes at the edges of their image and leaves out what is empty then; by default
        such boxes are errors.
      classes: the names of the classes; default: those of all annotations, sorted.

    Raises:
      UserError: missing files, annotations that cannot be read, classes or boxes that do not fit, by file and object.
    """
    where = f"voc:{rest}"
    root = find_path(rest, data_dir, where=where)
    cut = _how(columns, where)
    annotations = {path.stem: path for path in sorted((root / "Annotations").glob("*.xml"))}
    if not annotations:
        raise UserError(f"{where}: there is no Annotations/*.xml in {root}.")
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    chosen = list(annotations)
    if lists:
        file = lists[choose_split(split, lists, where=where)]
        chosen = [line.split()[0] for line in read_file(file).decode("utf-8").splitlines() if line.strip()]
        missing = [f"{name} has no annotation." for name in chosen if name not in annotations]
        raise_faults(f"{file} names images that cannot be used:", _few(missing))
    else:
        choose_split(split, WHOLE, where=where)
    # Without names of the classes all annotations are read, so that all splits number them alike.
    wanted = chosen if classes is not None else list(annotations)
    read = {name: parse_voc(read_file(annotations[name]), str(annotations[name])) for name in wanted}
    names = _names((thing for _, _, things in read.values() for thing in things), classes)
    pictures = [Picture(root / "JPEGImages" / read[name][0], name, *read[name][1:]) for name in chosen]
    checked = check(pictures, names, cut=cut, where=where, files=[str(annotations[name]) for name in chosen])
    return Source(PictureRecords(checked, names), names, f"{where}/{split}")


def open_coco(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A COCO json file, a folder with one a split, or a path such as `annotations/instances_{split}.json`.

    Images are looked for beside the file, in `SPLIT/` and `images/` there, and in the same places a folder higher.
    Classes are the categories in the order of their ids. `columns` as for `voc:`.

    Raises:
      UserError: as for `voc:`; annotations of images or categories that the file does not have.
    """
    where = f"coco:{rest}"
    cut = _how(columns, where)
    path, _ = split_files(rest, split, data_dir, suffix=".json", where=where)
    try:
        data = json.loads(read_file(path))
        categories = {entry["id"]: str(entry["name"]) for entry in sorted(data["categories"], key=lambda e: e["id"])}
        images = {entry["id"]: entry for entry in data["images"]}
        things: dict[Any, list[Thing]] = {number: [] for number in images}
        faults = []
        for entry in data.get("annotations", ()):
            unknown = [n for n, known in (("image", images), ("category", categories)) if entry[f"{n}_id"] not in known]
            faults += [f"annotation {entry['id']} is of an unknown {n}: {entry[f'{n}_id']}." for n in unknown]
            if not unknown:
                x, y, width, height = map(float, entry["bbox"])
                thing = Thing(
                    categories[entry["category_id"]], (x, y, x + width, y + height), bool(entry.get("iscrowd"))
                )
                things[entry["image_id"]].append(thing)
        sizes = {number: (int(entry["width"]), int(entry["height"])) for number, entry in images.items()}
        files = {number: entry["file_name"] for number, entry in images.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not in COCO's format: {type(error).__name__}: {error}.") from error
    raise_faults(f"{path} cannot be used:", _few(faults))
    names = _names((Thing(name, (0, 0, 0, 0), False) for name in categories.values()), classes, ordered=True)
    folder = _image_folder(path, split, next(iter(files.values()), ""))
    pictures = [Picture(folder / files[n], files[n], sizes[n], tuple(things[n])) for n in images]
    checked = check(pictures, names, cut=cut, where=where, files=[f"{path}, {files[n]}" for n in images])
    return Source(PictureRecords(checked, names), names, f"{where}/{split}")


def check(
    pictures: Sequence[Picture], classes: Sequence[str], *, cut: bool, where: str, files: Sequence[str]
) -> list[Picture]:
    """The pictures, their boxes cut at the edges where `cut`; a `UserError` lists by file and object what is wrong.

    What reaches out by less than a pixel is rounding, and always cut.
    """
    faults, found = [], []
    for picture, file in zip(pictures, files, strict=True):
        kept = []
        for i, thing in enumerate(picture.things, 1):
            if thing.name not in classes:
                faults.append(f"{file}, object {i}: {thing.name!r} is not a class. {suggest(thing.name, classes)}")
            box = tuple(np.clip(thing.box, 0, (*picture.size, *picture.size)).tolist())
            near = max(abs(a - b) for a, b in zip(box, thing.box, strict=True)) < 1
            thing = thing._replace(box=box) if cut or near else thing
            if fault := fault_of(thing.box, picture.size):
                if not cut:
                    faults.append(f"{file}, object {i} ({thing.name}): {fault}")
                continue
            kept.append(thing)
        found.append(picture._replace(things=tuple(kept)))
    raise_faults(f"The boxes of {where} cannot be used (columns=dict(boxes='cut') cuts them):", _few(faults))
    return found


def _how(columns: Mapping[str, str] | None, where: str) -> bool:
    """Whether boxes are cut at the edges."""
    faults = [
        f"{role!r} is no column of boxes. {suggest(role, ('boxes',))}" for role in columns or () if role != "boxes"
    ]
    how = (columns or {}).get("boxes", "exact")
    faults += [f"boxes is {how!r}. {suggest(how, HOW)}"] * (how not in HOW)
    raise_faults(f"The columns of {where} cannot be used:", faults)
    return how == "cut"


def _names(things: Iterator[Thing], classes: Sequence[str] | None, *, ordered: bool = False) -> tuple[str, ...]:
    if classes is not None:
        return tuple(classes)
    found = dict.fromkeys(thing.name for thing in things)
    return tuple(found if ordered else sorted(found))


def _image_folder(path: Path, split: str, name: str) -> Path:
    """The folder that holds the image called `name`."""
    tried = [parent / part for parent in (path.parent, path.parent.parent) for part in ("", split, "images")]
    for folder in tried:
        if (folder / name).is_file():
            return folder
    raise UserError(f"The images of {path} are not to be found: no {name} in {', '.join(map(str, tried))}.")


def _few(faults: list[str]) -> list[str]:
    more = len(faults) - MOST_FAULTS
    return [*faults[:MOST_FAULTS], *([f"and {more} more."] if more > 0 else [])]
