"""CIFAR-10's test photographs, corrupted: what a camera, the weather of light and a small sensor do to them.

Five of the corruptions of Hendrycks and Dietterich 2019 (arXiv 1903.12261), in pixels from 0 to 1, at the strength that
CIFAR-10-C calls severity 5. The strengths are recalled; the set itself was not at hand.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.base.types import Source


def noise(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of deviation 0.1."""
    return pixels + generator.normal(0, 0.1, pixels.shape)


def blur(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A Gaussian blur of one pixel."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(pixels, sigma=(1, 1, 0))


def contrast(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """0.15 of the differences from each channel's mean."""
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return mean + 0.15 * (pixels - mean)


def brightness(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """0.3 more of the largest channel: the value in HSV, where hue and saturation stay."""
    value = pixels.max(axis=-1, keepdims=True)
    return pixels * np.divide(np.minimum(value + 0.3, 1), value, out=np.ones_like(value), where=value > 0)


def pixelate(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Made smaller to 0.65 of the side by a box filter, and as large as before by repetition."""
    from PIL import Image

    image = Image.fromarray(_bytes(pixels))
    small = image.resize((int(image.width * 0.65), int(image.height * 0.65)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX)) / 255


KINDS: dict[str, Callable] = {f.__name__: f for f in (noise, blur, contrast, brightness, pixelate)}
"""Name → (pixels (H, W, C) in [0, 1], generator) → pixels, not yet clipped."""


class Corrupted(Sequence):
    """Records of images with a corruption each; record i is corrupted in the same way whenever it is read."""

    def __init__(self, records: Sequence[Mapping[str, Any]], kind: str):
        self.records, self.kind = records, kind

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        from PIL import Image

        record = self.records[i]
        pixels = np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB")) / 255
        generator = np.random.default_rng([int(i), sorted(KINDS).index(self.kind)])
        return {**record, "image": _bytes(KINDS[self.kind](pixels, generator))}


def open_corrupted(
    kind: str,
    *,
    split: str = "test",
    data_dir: Any = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """`tljax:cifar10` with a corruption, a name in `KINDS`."""
    from tljax.data.sources import open_source

    if kind not in KINDS:
        raise UserError(f"There is no corruption {kind!r}. {suggest(kind, KINDS)}")
    source = open_source("tljax:cifar10", split=split, data_dir=data_dir)
    return source._replace(records=Corrupted(source.records, kind), name=f"{source.name}, {kind}")


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
