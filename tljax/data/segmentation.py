"""Images with a class a pixel → pixels and masks of one shape, which move together."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.data.detection import GREY, PLACEMENTS, Placement, placement
from tljax.data.images import ImageProcessor
from tljax.data.options import replaced

IGNORED = 255
"""In a batch, the class of pixels that do not count: masks are uint8."""
MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of images that hold one number a pixel."""
MOST_VALUES = 8


class MaskAugment(NamedTuple):
    """Random changes of training images and their masks.

    Attributes:
      flip: left and right are swapped in half of the cases.
      scale: (least, most) side of the window that is cut out, in sides of the image; above 1 the image is surrounded
        with grey, which does not count. (1, 1) cuts nothing.
      ratio: the window is up to this factor wider or higher than the image; 1 keeps the shape.
    """

    flip: bool = True
    scale: tuple[float, float] = (0.5, 1.25)
    ratio: float = 1.2


def mask_of(record: Mapping[str, Any], classes: int, ignore: int = IGNORED) -> np.ndarray:
    """The mask of a record, (H, W) uint8, where `ignore` became `IGNORED`.

    Args:
      record: with `mask`: an encoded image of one number a pixel (grey, or the indices of a palette), or integers
        (H, W) or (H, W, 1).
      classes: Y; every other number must be below it.
      ignore: the number of pixels that do not count.

    Raises:
      UserError: a mask that cannot be decoded, that has colours, or that has numbers out of range, by name.
    """
    mask, name = record["mask"], f"The mask of the record {record.get('id')!r}"
    if isinstance(mask, bytes):
        try:
            image = Image.open(io.BytesIO(mask))
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise UserError(f"{name} cannot be decoded: {error}. Is the file complete?") from error
        if image.mode not in MODES:
            raise UserError(
                f"{name} is an image of the mode {image.mode}, whose pixels are colours and not class numbers; it must "
                "be grey, or have a palette."
            )
        mask = np.asarray(image)
    mask = np.asarray(mask)
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise UserError(f"{name} is an array of {mask.dtype} {mask.shape}, and must be integers of (H, W).")
    known = mask[mask != ignore]
    if known.size and (known.min() < 0 or known.max() >= classes):
        wrong = [int(n) for n in np.unique(known) if not 0 <= n < classes]
        more = f" and {len(wrong) - MOST_VALUES} more" if len(wrong) > MOST_VALUES else ""
        raise UserError(
            f"{name} has the values {', '.join(map(str, wrong[:MOST_VALUES]))}{more}: there are {classes} classes, "
            f"numbered from 0, and {ignore} is ignored."
        )
    return np.where(mask == ignore, IGNORED, mask).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class MaskProcessor:
    """`image` and `mask` (see `mask_of`) → inputs, and a class a pixel of the input.

    A batch has `inputs`; `mask` (B, H, W) uint8 with `IGNORED` where nothing counts; and as `targets` only
    `pixels` (B, Y), how many pixels each class has, so that an evaluation need not keep the masks.

    Attributes:
      processor: of the checkpoint: its size, channels, filter, mean and deviation are used.
      classes: Y.
      ignore: the number of pixels that do not count, in the records.
      place: how an image lies in the input: "stretch", or "letterbox", which keeps its shape.
      size: (H, W) of the input, or one number for both; None is the checkpoint's.
      augment: `MaskAugment` (or its options), applied in training only; None changes nothing.
    """

    makes_targets = True
    random = True
    processor: ImageProcessor
    classes: int
    ignore: int = IGNORED
    place: str = "stretch"
    size: Any = None
    augment: Any = None

    def __post_init__(self):
        faults = []
        if not isinstance(self.processor, ImageProcessor):
            faults.append("the checkpoint's processor must be one of images.")
        else:
            size = self.processor.size if self.size is None else self.size
            size = (size, size) if isinstance(size, int) else size
            object.__setattr__(self, "size", size)
            if size is None:
                faults.append("neither the checkpoint nor config.task says the size of the input: set task.size.")
            elif len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
                faults.append(f"size is {size!r}, and must be pixels: a number, or (height, width).")
        if not 2 <= self.classes <= IGNORED:
            faults.append(f"there are {self.classes} classes, and there must be from 2 to {IGNORED}.")
        if self.place not in PLACEMENTS:
            faults.append(f"place is {self.place!r}. {suggest(self.place, PLACEMENTS)}")
        if not isinstance(self.ignore, int) or isinstance(self.ignore, bool):
            faults.append(f"ignore is {self.ignore!r}, and must be a whole number.")
        if isinstance(self.augment, Mapping):
            unknown = [key for key in self.augment if key not in MaskAugment._fields]
            faults += [f"augment.{key} does not exist. {suggest(key, MaskAugment._fields)}" for key in unknown]
            if not unknown:
                object.__setattr__(self, "augment", MaskAugment(**self.augment))
        if isinstance(self.augment, MaskAugment):
            least, most = self.augment.scale
            if not 0 < least <= most:
                faults.append(f"augment.scale is {self.augment.scale!r}, and must be (least, most), above 0.")
            if self.augment.ratio < 1:
                faults.append(f"augment.ratio is {self.augment.ratio!r}, and must be at least 1.")
        raise_faults("Images with masks cannot be prepared:", faults)

    def replace(self, **options: Any) -> "MaskProcessor":
        """With other options; `UserError` for unknown ones."""
        return replaced(self, options, what="mask")

    def fixed_shape(self) -> "MaskProcessor":
        """Itself: all its batches have one shape."""
        return self

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`pixel_values` (H, W, C), and `mask` (H, W) where the record has one. `rng` switches `augment` on.

        Raises:
          UserError: no image, a mask that cannot be read (see `mask_of`), or of another size than its image.
        """
        pixels, mask = self.view(record, rng)
        # The reader's own steps from here on: channels, scale, mean and deviation.
        plain = dataclasses.replace(self.processor, size=self.size, resize="none", augment=None)
        found = plain.example({"image": pixels, "id": record.get("id")})
        return found if mask is None else {**found, "mask": mask}

    def view(
        self, record: Mapping[str, Any], rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(the image as the input shows it, uint8 (H, W, C) or (H, W) for grey; its mask (H, W) uint8, or None)."""
        image, mask = self.processor.decode(record), None
        if "mask" in record:
            mask = mask_of(record, self.classes, self.ignore)
            if mask.shape != image.size[::-1]:
                raise UserError(
                    f"The record {record.get('id')!r} has an image of {image.size[0]} × {image.size[1]} pixels "
                    f"(width × height), and a mask of {mask.shape[1]} × {mask.shape[0]}."
                )
            mask = Image.fromarray(mask)
        augment = self.augment if rng is not None else None
        if augment is not None and tuple(augment.scale) != (1, 1):
            box = _window(image.size, augment, rng)
            image, mask = _cut(image, box, GREY), None if mask is None else _cut(mask, box, IGNORED)
        where = placement(image.size, self.size, self.place)
        pixels = _placed(image, where, Image.Resampling[self.processor.resample.upper()], GREY)
        mask = None if mask is None else _placed(mask, where, Image.Resampling.NEAREST, IGNORED)
        if augment is not None and augment.flip and rng.random() < 0.5:
            pixels, mask = pixels[:, ::-1], None if mask is None else mask[:, ::-1]
        return np.ascontiguousarray(pixels), None if mask is None else np.ascontiguousarray(mask)

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs`; `mask` (B, H, W) and `targets` {"pixels": (B, Y) int32} where there are masks.

        Raises:
          UserError: some records have masks and others none.
        """
        batch: dict[str, Any] = {"inputs": {"pixel_values": np.stack([x["pixel_values"] for x in examples])}}
        known = sum("mask" in x for x in examples)
        if known not in (0, len(examples)):
            raise UserError(f"{len(examples) - known} of {len(examples)} records of a batch have no mask.")
        if known:
            batch["mask"] = np.stack([x["mask"] for x in examples])
            counts = [np.bincount(x["mask"].ravel(), minlength=IGNORED + 1)[: self.classes] for x in examples]
            batch["targets"] = {"pixels": np.stack(counts).astype(np.int32)}
        return batch

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        own = {name: getattr(self, name) for name in ("classes", "ignore", "place", "size")}
        return {**self.processor.facts, **own}


def at_image(label: np.ndarray, size: tuple[int, int], place: str) -> np.ndarray:
    """The classes of an input (H, W), at the size (width, height) of the stored image: nearest neighbours."""
    where = placement(size, label.shape, place)
    inner = np.rint(np.array(size) * where.scale).astype(int)
    left, top = (int(n) for n in where.shift)
    part = Image.fromarray(label[top : top + inner[1], left : left + inner[0]])
    return np.asarray(part.resize(size, Image.Resampling.NEAREST))


def _window(size: tuple[int, int], augment: MaskAugment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of a random window, which may reach out of an image of (width, height)."""
    full = np.array(size)
    side = rng.uniform(*augment.scale)
    ratio = math.exp(rng.uniform(-1, 1) * math.log(augment.ratio) / 2)
    wanted = np.maximum(np.rint(full * side * np.array([ratio, 1 / ratio])), 1).astype(int)
    free = full - wanted
    start = np.rint(rng.uniform(np.minimum(free, 0), np.maximum(free, 0))).astype(int)
    return (*map(int, start), *map(int, start + wanted))


def _cut(image: Image.Image, box: tuple[int, int, int, int], fill: int) -> Image.Image:
    canvas = Image.new("L", (box[2] - box[0], box[3] - box[1]), fill).convert(image.mode)
    canvas.paste(image, (-box[0], -box[1]))
    return canvas


def _placed(image: Image.Image, where: Placement, resample: Image.Resampling, fill: int) -> np.ndarray:
    inner = tuple(int(n) for n in np.rint(np.array(image.size) * where.scale))
    full = tuple(int(n) for n in where.size)
    image = image.resize(inner, resample)
    if inner != full:
        canvas = Image.new("L", full, fill).convert(image.mode)
        canvas.paste(image, tuple(int(n) for n in where.shift))
        image = canvas
    return np.asarray(image)
