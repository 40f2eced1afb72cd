"""Darknet's .cfg and .weights: a text that describes the network, and a headed stream of its float32 numbers.

The stream holds, for each convolution in the order of the text: biases; scales, means and variances where it has a
batch norm; weights (out, in / groups, H, W). The header is three int32 (major, minor, revision) and how many images the
network has seen, an int64 from version 0.2 on and an int32 before.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Model
from tljax.checkpoints.convert import export_leaves, flat_of
from tljax.checkpoints.tensors import Format, Tensor, map_bytes
from tljax.models.darknet_cfg import parse, read_sections
from tljax.models.formats import describe_labels
from tljax.models.yolo import YoloConfig, YoloHead, detectors, head_rows, make_head, table

HEADER = np.array([0, 2, 5, 0, 0], "<i4").view(np.uint8)
"""Of a network that no Darknet has written: version 0.2.5, and no images seen."""

FLOAT = np.dtype("<f4")

DESCRIBED = ("anchors", "sizes", "scale_x_y", "new_coords")
"""What a .cfg says of a head besides its classes."""


def find_cfg(weights: Path) -> Path:
    """The .cfg that describes a .weights file: the one with its stem, else the only one beside it.

    Raises:
      UserError: there is none, or several of other names.
    """
    if (own := weights.with_suffix(".cfg")).is_file():
        return own
    found = sorted(weights.parent.glob("*.cfg"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise UserError(f"{weights} needs its description beside it: {own.name}, or a single .cfg. Found: {names}.")


def find_weights(folder: Path) -> Path | None:
    """The only .weights file of a folder, or None; raises `UserError` where there are several."""
    found = sorted(folder.glob("*.weights"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder} holds several networks: {names}. Name one of these files.")
    return found[0] if found else None


def read_cfg(weights: Path) -> str:
    """The text of the .cfg, checked; bytes that are no UTF-8 survive the way back."""
    path = find_cfg(weights)
    text = path.read_bytes().decode("utf8", "surrogateescape")
    parse(text, str(path))
    return text


def describe(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entries of config.json that a .weights file stands for: the .cfg's text, verbatim."""
    return {"model_type": "yolo", "cfg": read_cfg(path)}


def stream(cfg: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tensor name, shape) in the order of the file."""
    description = parse(cfg)
    for section in description.sections:
        if section.kind != "convolutional":
            continue
        read = section.reads[0]
        channels = description.channels if read < 0 else description.sections[read].shape[2]
        filters, size = section.get("filters"), section.get("size")
        name = f"layer{section.number}"
        yield f"{name}.biases", (filters,)
        if section.get("batch_normalize"):
            for part in ("scales", "means", "variances"):
                yield f"{name}.{part}", (filters,)
        yield f"{name}.weights", (filters, channels // section.get("groups"), size, size)


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .weights file as memory maps: `layer0.biases` …, by the section's number, and `header` (bytes).

    Raises:
      UserError: no .cfg, or one that does not describe this file: both are named, with the numbers of floats.
    """
    path = Path(path)
    shapes = dict(stream(read_cfg(path)))
    size = path.stat().st_size
    with path.open("rb") as file:
        major, minor = np.frombuffer(file.read(8).ljust(8, b"\0"), "<i4").tolist()
    start = 20 if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else 16
    expected, found = sum(map(math.prod, shapes.values())), (size - start) / FLOAT.itemsize
    if found != expected:
        raise UserError(
            f"{path} does not fit {find_cfg(path)}: the description has {expected} floats, and the file holds "
            f"{max(found, 0):.10g} after its header of {start} bytes."
        )
    tensors = {"header": Tensor((start,), np.dtype(np.uint8), lambda: map_bytes(path, 0, start), str(path))}
    place = start
    for name, shape in shapes.items():
        tensors[name] = _tensor(path, place, shape)
        place += math.prod(shape) * FLOAT.itemsize
    return tensors


def _tensor(path: Path, start: int, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape) * FLOAT.itemsize
    return Tensor(shape, FLOAT, lambda: map_bytes(path, start, size).view(FLOAT).reshape(shape), str(path))


def make_processor(path: Path, tensors: Mapping[str, Tensor], found: Any) -> Any:
    """The folder's own, else what Darknet does with an image: stretched to the network's size, RGB from 0 to 1."""
    from tljax.data.images import ImageProcessor

    if found is not None:
        return found
    return ImageProcessor(size=parse(read_cfg(path)).size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def with_classes(cfg: str, classes: int) -> str:
    """The text for another number of classes: `classes` of each detector and `filters` before it; the rest verbatim."""
    config, lines = YoloConfig(cfg), cfg.split("\n")
    raws = read_sections(cfg, [])[1:]
    inserted: dict[int, str] = {}
    for detector in detectors(config):
        new = {detector.yolo.number: ("classes", classes)}
        new[detector.conv.number] = ("filters", len(detector.anchors) * (5 + classes))
        for number, (name, value) in new.items():
            if name in raws[number].options:
                line = raws[number].options[name][1] - 1
                before, _, after = lines[line].partition("=")
                lines[line] = f"{before}={_replaced(after, value)}"
            else:
                inserted[raws[number].line] = f"{name}={value}"
    for line in sorted(inserted, reverse=True):
        lines.insert(line, inserted[line])
    return "\n".join(lines)


def _replaced(text: str, value: int) -> str:
    """`value` in the place of what stands in `text`, between its white space and before a comment."""
    old = text.partition("#")[0].strip()
    return text.replace(old, str(value), 1)


def check_head(model: Model) -> None:
    """Raises `UserError` for a head that a .cfg of this network cannot describe."""
    head = model.head
    if isinstance(head, YoloHead):
        described = make_head(model.config, head.classes)
        if all(getattr(head, name) == getattr(described, name) for name in DESCRIBED):
            return
    raise UserError(
        f"The head {head} cannot be written as Darknet's .cfg and .weights: this needs the detectors of the source's "
        f".cfg, with its anchors; only their classes may differ ({make_head(model.config)})."
    )


def writer(model: Model, variables: Mapping[str, Any], classes: Sequence[str] | None) -> Callable[[Path], None]:
    """Writes model.cfg, model.weights, and a config.json with the names of the classes.

    An untouched network gives back the bytes that it was read from.
    """
    check_head(model)
    return lambda folder: _write(folder, model, variables, classes)


def _write(folder: Path, model: Model, variables: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    cfg = model.config.cfg
    if model.head.classes != detectors(model.config)[0].yolo.get("classes"):
        cfg = with_classes(cfg, model.head.classes)
    rows = table(model.config, "")
    tensors = export_leaves(rows._replace(rows=(*rows.rows, *head_rows(model.config))), flat_of(variables))
    header = np.asarray(variables.get("extras", {}).get("header", HEADER), np.uint8)
    (folder / "model.cfg").write_bytes(cfg.encode("utf8", "surrogateescape"))
    with (folder / "model.weights").open("wb") as file:
        file.write(header.tobytes())
        for name, _ in stream(cfg):
            file.write(tensors[name].astype(FLOAT).tobytes())
    entries = {name: value for name, value in json.loads(model.source).items() if name != "cfg"}
    known = entries.get("id2label") or {}
    names = classes or (list(known.values()) if len(known) == model.head.classes else None)
    entries = {"model_type": "yolo", **entries, **(describe_labels(model.head, names) if names else {})}
    (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")


FORMAT = Format(open_tensors, describe, make_processor, writer)
