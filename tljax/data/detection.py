"""Images with boxes → pixels and padded boxes of one shape, which move together."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.data.images import ImageProcessor
from tljax.data.options import replaced

PLACEMENTS = ("stretch", "letterbox")
NO_BOX = -1
"""The label of a row that holds no box."""
GREY = 127


class BoxAugment(NamedTuple):
    """Random changes of training images and their boxes.

    Attributes:
      flip: left and right are swapped in half of the cases.
      scale: (least, most) side of the window that is cut out, in sides of the image; above 1 the image is surrounded
        with grey.
      ratio: the window is up to this factor wider or higher than the image; 1 keeps the shape.
      visible: a box is kept where at least this share of it lies in the window.
      colour: the most that brightness, contrast and saturation change, as a share; 0 for none.
    """

    flip: bool = True
    scale: tuple[float, float] = (0.6, 1.2)
    ratio: float = 1.2
    visible: float = 0.4
    colour: float = 0.3


class Placement(NamedTuple):
    """The way from pixels of the stored image to shares of the input: `share = (pixel · scale + shift) / size`.

    Attributes:
      scale: (2,) of x and y.
      shift: (2,) of x and y, in pixels of the input.
      size: (2,) width and height of the input.
    """

    scale: np.ndarray
    shift: np.ndarray
    size: np.ndarray

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (M, 4) in pixels of the image → shares of the input, float32."""
        moved = boxes.reshape(-1, 2, 2) * self.scale + self.shift
        return (moved / self.size).reshape(-1, 4).astype(np.float32)

    def pixels(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Boxes (M, 4) in shares of the input → pixels of the image, whose (width, height) cut them off."""
        moved = (boxes.reshape(-1, 2, 2) * self.size - self.shift) / self.scale
        return np.clip(moved, 0, size).reshape(-1, 4)


def placement(size: tuple[int, int], target: tuple[int, int], how: str) -> Placement:
    """How an image of (width, height) lies in an input of (height, width).

    Args:
      size: in pixels.
      target: in pixels.
      how: "stretch": it fills the input; "letterbox": it keeps its shape, in the middle, to the pixel as Darknet
        places it.
    """
    (width, height), (high, wide) = size, target
    inner = (wide, high)
    if how == "letterbox":
        by_width = wide * height < high * width
        inner = (wide, max(height * wide // width, 1)) if by_width else (max(width * high // height, 1), high)
    shift = [(full - part) // 2 for full, part in zip((wide, high), inner, strict=True)]
    return Placement(np.array(inner) / np.array(size), np.array(shift, float), np.array([wide, high], float))


def image_size(record: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of a record's image as it is shown, read from its header."""
    image = record["image"]
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    opened = Image.open(io.BytesIO(image))
    turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the tag of the orientation: lying on its side
    return opened.size[::-1] if turned else opened.size


@dataclasses.dataclass(frozen=True)
class BoxProcessor:
    """`image`, and `boxes` (M, 4) in its pixels with `labels` (M,) and perhaps `ignore` (M,) → inputs and targets.

    Attributes:
      processor: of the checkpoint: its size, channels, mean and deviation are used.
      place: one of `PLACEMENTS`.
      max_boxes: M of the targets; a record with more is an error.
      augment: `BoxAugment` (or its options), applied in training only; None changes nothing.
    """

    makes_targets = True
    random = True
    processor: ImageProcessor
    place: str = "stretch"
    max_boxes: int = 100
    augment: Any = None

    def __post_init__(self):
        faults = []
        if not isinstance(self.processor, ImageProcessor) or self.processor.size is None:
            faults.append("the checkpoint's processor must be one of images, with a size.")
        if self.place not in PLACEMENTS:
            faults.append(f"place is {self.place!r}. {suggest(self.place, PLACEMENTS)}")
        if not isinstance(self.max_boxes, int) or self.max_boxes < 1:
            faults.append(f"max_boxes is {self.max_boxes!r}, and must be a whole number above 0.")
        if isinstance(self.augment, Mapping):
            unknown = [key for key in self.augment if key not in BoxAugment._fields]
            faults += [f"augment.{key} does not exist. {suggest(key, BoxAugment._fields)}" for key in unknown]
            if not unknown:
                object.__setattr__(self, "augment", BoxAugment(**self.augment))
        if isinstance(self.augment, BoxAugment):
            faults += _faults_of(self.augment)
        raise_faults("Images with boxes cannot be prepared:", faults)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.processor.size

    def replace(self, **options: Any) -> "BoxProcessor":
        """With other options; `UserError` for unknown ones."""
        return replaced(self, options, what="box")

    def fixed_shape(self) -> "BoxProcessor":
        """Itself: all its batches have one shape."""
        return self

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`pixel_values` (H, W, C); `boxes` (max_boxes, 4) as shares of the input, `labels` (max_boxes,), −1 for none,
        and `ignore` (max_boxes,), where the record has boxes. `rng` switches `augment` on.

        Raises:
          UserError: no image, or boxes that do not fit their labels, the image or `max_boxes`.
        """
        image = self.processor.decode(record)
        boxes, labels, ignore = boxes_of(record, image.size, self.max_boxes)
        augment = self.augment if rng is not None else None
        if augment is not None:
            image, boxes, kept = _window(image, boxes, augment, rng)
            labels, ignore = labels[kept], ignore[kept]
            image = _recoloured(image, augment.colour, rng)
        where = placement(image.size, self.size, self.place)
        pixels, boxes = self._placed(image, where), where.place(boxes)
        if augment is not None and augment.flip and rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
        # The reader's own steps from here on: channels, scale, mean and deviation.
        plain = dataclasses.replace(self.processor, resize="none", augment=None)
        found = plain.example({"image": np.ascontiguousarray(pixels), "id": record.get("id")})
        if record.get("boxes") is None:
            return found
        count = len(boxes)
        found["boxes"] = np.zeros((self.max_boxes, 4), np.float32)
        found["labels"] = np.full(self.max_boxes, NO_BOX, np.int32)
        found["ignore"] = np.zeros(self.max_boxes, bool)
        found["boxes"][:count], found["labels"][:count], found["ignore"][:count] = boxes, labels, ignore
        return found

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs`, and `targets` where there are boxes: `boxes` (B, M, 4), `labels` and `ignore` (B, M)."""
        batch: dict[str, Any] = {"inputs": {"pixel_values": np.stack([x["pixel_values"] for x in examples])}}
        if "boxes" in examples[0]:
            batch["targets"] = {n: np.stack([x[n] for x in examples]) for n in ("boxes", "labels", "ignore")}
        return batch

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {**self.processor.facts, "place": self.place, "max_boxes": self.max_boxes}

    def _placed(self, image: Image.Image, where: Placement) -> np.ndarray:
        inner = tuple(int(n) for n in np.rint(np.array(image.size) * where.scale))
        resample = Image.Resampling[self.processor.resample.upper()]
        image = image.resize(inner, resample)
        full = tuple(int(n) for n in where.size)
        if inner != full:
            canvas = _grey(image.mode, full)
            canvas.paste(image, tuple(int(n) for n in where.shift))
            image = canvas
        return np.asarray(image)


def boxes_of(
    record: Mapping[str, Any], size: tuple[int, int], limit: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(`boxes` (M, 4) float64, `labels` (M,), `ignore` (M,)) of a record; none where it has no boxes.

    Args:
      record: with `boxes` x0 y0 x1 y1 in pixels.
      size: (width, height) of its image.
      limit: the most boxes there may be.

    Raises:
      UserError: with the number of each box that is empty or reaches out of the image, and for wrong counts.
    """
    if record.get("boxes") is None:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    boxes = np.asarray(record["boxes"], np.float64).reshape(-1, 4)
    labels = np.asarray(record.get("labels", ()), np.int64).reshape(-1)
    ignore = np.asarray(record.get("ignore", np.zeros(len(boxes))), bool).reshape(-1)
    faults = []
    if not len(boxes) == len(labels) == len(ignore):
        faults.append(f"there are {len(boxes)} boxes, {len(labels)} labels and {len(ignore)} marks to ignore.")
    if limit is not None and len(boxes) > limit:
        faults.append(f"there are {len(boxes)} boxes, and max_boxes is {limit}.")
    faults += [f"box {i}: {fault}" for i, box in enumerate(boxes) if (fault := fault_of(box, size))]
    raise_faults(f"The boxes of the record {record.get('id')!r} cannot be used:", faults)
    return boxes, labels, ignore


def fault_of(box: Sequence[float], size: tuple[int, int]) -> str:
    """What is wrong with a box in an image of (width, height); "" for nothing."""
    x0, y0, x1, y1 = map(float, box)
    said = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if not np.isfinite([x0, y0, x1, y1]).all():
        return f"{said} is not finite."
    if x1 <= x0 or y1 <= y0:
        return f"{said} is empty; the order is x0, y0, x1, y1."
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        return f"{said} reaches out of the image, which has {size[0]} × {size[1]} pixels."
    return ""


def _faults_of(augment: BoxAugment) -> list[str]:
    faults = []
    if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
        faults.append(f"augment.scale is {augment.scale!r}, and must be (least, most), above 0.")
    if augment.ratio < 1:
        faults.append(f"augment.ratio is {augment.ratio!r}, and must be at least 1.")
    for name in ("visible", "colour"):
        if not 0 <= getattr(augment, name) < 1:
            faults.append(f"augment.{name} is {getattr(augment, name)!r}, and must be from 0 up to 1.")
    return faults


def _window(
    image: Image.Image, boxes: np.ndarray, augment: BoxAugment, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """(a random part of the image, the boxes in it, the numbers of the boxes that are kept)."""
    full = np.array(image.size)
    side = rng.uniform(*augment.scale)
    ratio = np.exp(rng.uniform(-1, 1) * np.log(augment.ratio) / 2)
    size = np.maximum(np.rint(full * side * np.array([ratio, 1 / ratio])), 1).astype(int)
    free = full - size
    start = np.rint(rng.uniform(np.minimum(free, 0), np.maximum(free, 0))).astype(int)
    canvas = _grey(image.mode, tuple(map(int, size)))
    canvas.paste(image, tuple(map(int, -start)))
    moved = boxes - np.tile(start, 2)
    cut = np.clip(moved, 0, np.tile(size, 2))
    share = np.prod(cut[:, 2:] - cut[:, :2], axis=1) / np.prod(moved[:, 2:] - moved[:, :2], axis=1)
    kept = np.flatnonzero((share >= augment.visible) & (share > 0))
    return canvas, cut[kept], kept


def _recoloured(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    if not strength:
        return image
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _grey(mode: str, size: tuple[int, int]) -> Image.Image:
    return Image.new("L", size, GREY).convert(mode)
