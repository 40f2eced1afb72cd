"""Random changes of training images and texts: what may be asked for, and pure functions of a generator.

Axes: H W C image. Colours and shapes are changed by Pillow, on uint8.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tljax.base.tables import suggest
from tljax.data.options import plain

GREY = 128
"""Fills what an image turned, moved or sheared leaves free, and what `cutout` covers."""
STRONGEST = 10
"""The greatest magnitude of RandAugment."""

Change = Callable[[Image.Image, float], Image.Image]


class Augment(NamedTuple):
    """Random changes of training images, made in this order.

    Attributes:
      resized_crop: (least, most) share of the area; a random part of the image, of a random shape between 3:4 and
        4:3, is resized to the final size (Szegedy et al. 2015). It takes the place of resizing and centre crop.
      crop: the image is padded with that many black pixels on each side, and cut back at a random place.
      flip: left and right are swapped in half of the cases.
      brightness, contrast, saturation: each is multiplied by a factor drawn evenly from 1 − s to 1 + s, in a random
        order; 0 changes nothing, 1 is the most.
      hue: the hue is turned by a share of the circle drawn evenly from −h to h; 0.5 is the most.
      colour_chance: share of the images that the four above change (SimCLR, Chen et al. 2020: 0.8).
      gray: share of the images whose colours are taken away.
      invert: share of the images of which the negative is taken, after the colours and before RandAugment (French et
        al. 2018, arXiv 1706.05208, flip intensities so, where one domain has dark signs on light and the other not).
      blur: share of the images that are blurred by a Gaussian, whose deviation is drawn evenly from `blur_sigma`.
      blur_sigma: (least, most), in pixels of the final size.
      randaugment: (count, magnitude): that many changes, one after another, each drawn from the thirteen of
        `RANDAUGMENT` and "nothing" (Cubuk et al. 2020, arXiv 1909.13719). The magnitude goes from 0 to 10, or is
        (least, most), from which each change draws its own, as in FixMatch.
      cutout: a grey square around a random pixel, whose side is that share of the short edge; what lies outside of the
        image is lost (DeVries and Taylor 2017, arXiv 1708.04552).
    """

    flip: bool = False
    crop: int = 0
    resized_crop: tuple[float, float] | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    colour_chance: float = 1.0
    gray: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    randaugment: tuple[int, Any] | None = None
    cutout: float = 0.0


class TextAugment(NamedTuple):
    """Random changes of training texts, made before the tokenizer reads them (two of those of Wei and Zou 2019, arXiv
    1901.11196). Words are what stands between spaces.

    Attributes:
      swap: words change places, two at a time, so often as this share of the number of words.
      drop: each word is left out with this chance; one always stays.
    """

    drop: float = 0.0
    swap: float = 0.0


def read_augment(kind: type, options: Any) -> tuple[Any, list[str]]:
    """(`options` as a `kind`, what is wrong with them); None and what is read already stay."""
    if not isinstance(options, Mapping):
        wrong = options is not None and not isinstance(options, kind)
        faults = [f"augment is {options!r}, and must be a dict of {', '.join(kind._fields)}."] if wrong else []
        return options, faults or (_faults(options) if options is not None else [])
    unknown = [key for key in options if key not in kind._fields]
    if unknown:
        return options, [f"augment.{key} does not exist. {suggest(key, kind._fields)}" for key in unknown]
    made = kind(**{name: plain(value) for name, value in options.items()})
    return made, _faults(made)


def _faults(augment: "Augment | TextAugment") -> list[str]:
    checks = _TEXT_CHECKS if isinstance(augment, TextAugment) else _IMAGE_CHECKS
    return [
        f"augment.{name} is {getattr(augment, name)!r}, and must be {accepted}."
        for names, fits, accepted in checks
        for name in names
        if not fits(getattr(augment, name))
    ]


def _between(least: float, most: float) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, (int, float)) and least <= x <= most


def _is_range(x: Any, least: float, most: float) -> bool:
    """Whether x is (a, b) with least ≤ a ≤ b ≤ most, and b above 0."""
    numbers = isinstance(x, (tuple, list)) and len(x) == 2 and all(isinstance(y, (int, float)) for y in x)
    return numbers and least <= x[0] <= x[1] <= most and x[1] > 0


def _is_randaugment(x: Any) -> bool:
    if x is None:
        return True
    if not isinstance(x, (tuple, list)) or len(x) != 2 or not isinstance(x[0], int) or x[0] < 1:
        return False
    return _between(0, STRONGEST)(x[1]) or _is_range(x[1], 0, STRONGEST)


_SHARES = ("brightness", "contrast", "saturation", "colour_chance", "gray", "invert", "blur", "cutout")
_IMAGE_CHECKS = (
    (("crop",), lambda x: isinstance(x, int) and x >= 0, "a whole number of pixels, 0 or above"),
    (
        ("resized_crop",),
        lambda x: x is None or (_is_range(x, 0, 1) and x[0] > 0),
        "None, or (least, most) shares of the area, above 0 and at most 1",
    ),
    (_SHARES, _between(0, 1), "from 0 to 1"),
    (("hue",), _between(0, 0.5), "from 0 to 0.5"),
    (("blur_sigma",), lambda x: _is_range(x, 0, math.inf), "(least, most) pixels, 0 or above"),
    (
        ("randaugment",),
        _is_randaugment,
        f"None, or (count, magnitude): a whole number from 1, and a number from 0 to {STRONGEST} or (least, most)",
    ),
)
_TEXT_CHECKS = (
    (("drop",), lambda x: _between(0, 1)(x) and x < 1, "from 0 up to, but not including, 1"),
    (("swap",), _between(0, 1), "from 0 to 1"),
)


# --- images


def changed_pixels(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """All of `augment` but `resized_crop`, of an image (H, W, C), uint8."""
    if augment.crop:
        pixels = _random_crop(pixels, augment.crop, rng)
    if augment.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    colours = {name: getattr(augment, name) for name in COLOURS if getattr(augment, name)}
    if colours or augment.gray or augment.invert or augment.blur or augment.randaugment is not None:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        pixels = np.asarray(_changed_image(image, colours, augment, rng)).reshape(pixels.shape)
    if augment.cutout:
        pixels = _cut_out(pixels, augment.cutout, rng)
    return pixels


def _changed_image(
    image: Image.Image, colours: Mapping[str, float], augment: Augment, rng: np.random.Generator
) -> Image.Image:
    if colours and rng.random() < augment.colour_chance:
        names = list(colours)
        for i in rng.permutation(len(names)):
            image = COLOURS[names[i]](image, rng.uniform(-colours[names[i]], colours[names[i]]))
    if augment.gray and rng.random() < augment.gray:
        image = image.convert("L").convert(image.mode)
    if augment.invert and rng.random() < augment.invert:
        image = ImageOps.invert(image)
    if augment.blur and rng.random() < augment.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*augment.blur_sigma)))
    if augment.randaugment is not None:
        image = _randaugment(image, *augment.randaugment, rng)
    return image


def _enhance(kind: type) -> Change:
    return lambda image, amount: kind(image).enhance(1 + amount)


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    hue, *others = image.convert("HSV").split()
    turned = hue.point([(step + round(share * 256)) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, *others)).convert("RGB")


COLOURS: Mapping[str, Change] = {
    "brightness": _enhance(ImageEnhance.Brightness),
    "contrast": _enhance(ImageEnhance.Contrast),
    "saturation": _enhance(ImageEnhance.Color),
    "hue": _turn_hue,
}
"""Options of `Augment` → change of an image by an amount; 0 changes nothing."""


def _affine(image: Image.Image, *, xx=1.0, xy=0.0, x=0.0, yx=0.0, yy=1.0, y=0.0) -> Image.Image:
    """The image whose pixel (x, y) is the old one's (xx · x + xy · y + x, …), counted from the centre; grey around."""
    across, down = image.width / 2, image.height / 2
    matrix = (xx, xy, x + across - xx * across - xy * down, yx, yy, y + down - yx * across - yy * down)
    fill = GREY if image.mode == "L" else (GREY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(image, xx=cos, xy=sin, yx=-sin, yy=cos)


RANDAUGMENT: Mapping[str, tuple[Change, float, bool]] = {
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), 0, False),
    "equalize": (lambda image, _: ImageOps.equalize(image), 0, False),
    "posterize": (lambda image, bits: ImageOps.posterize(image, 8 - round(bits)), 4, False),
    "solarize": (lambda image, below: ImageOps.solarize(image, 256 - round(below)), 256, False),
    "brightness": (COLOURS["brightness"], 0.9, True),
    "contrast": (COLOURS["contrast"], 0.9, True),
    "saturation": (COLOURS["saturation"], 0.9, True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), 0.9, True),
    "rotate": (_rotate, 30, True),
    "shear_x": (lambda image, share: _affine(image, xy=share), 0.3, True),
    "shear_y": (lambda image, share: _affine(image, yx=share), 0.3, True),
    "translate_x": (lambda image, share: _affine(image, x=share * image.width), 0.3, True),
    "translate_y": (lambda image, share: _affine(image, y=share * image.height), 0.3, True),
}
"""Name → (change of an image by an amount, the amount at the greatest magnitude, whether its sign is drawn)."""


def _randaugment(image: Image.Image, count: int, magnitude: Any, rng: np.random.Generator) -> Image.Image:
    names = list(RANDAUGMENT)
    for choice in rng.integers(0, len(names) + 1, count):
        level = rng.uniform(*magnitude) if isinstance(magnitude, (tuple, list)) else magnitude
        sign = 1 if rng.random() < 0.5 else -1
        if choice == len(names):
            continue
        change, most, signed = RANDAUGMENT[names[choice]]
        image = change(image, most * level / STRONGEST * (sign if signed else 1))
    return image


def _cut_out(pixels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = round(share * min(height, width))
    top, left = int(rng.integers(0, height)) - side // 2, int(rng.integers(0, width)) - side // 2
    pixels = pixels.copy()
    pixels[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = GREY
    return pixels


def _random_crop(pixels: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    height, width, channels = pixels.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), pixels.dtype)
    padded[pad : pad + height, pad : pad + width] = pixels
    top, left = rng.integers(0, 2 * pad + 1, 2)
    return padded[top : top + height, left : left + width]


def random_box(
    size: tuple[int, int], share: Sequence[float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(left, upper, right, lower) of a random part of an image of (width, height); its centre as a last resort."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*share)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


# --- texts


def changed_text(text: str, augment: TextAugment, rng: np.random.Generator) -> str:
    """`text` with words swapped and dropped; single spaces between words where something changed."""
    words = text.split()
    if len(words) < 2:
        return text
    order = np.arange(len(words))
    for _ in range(math.floor(augment.swap * len(words) + rng.random()) if augment.swap else 0):
        i, j = rng.choice(len(words), 2, replace=False)
        order[[i, j]] = order[[j, i]]
    if augment.drop:
        kept = rng.random(len(words)) >= augment.drop
        order = order[kept] if kept.any() else order[rng.integers(0, len(words), 1)]
    return text if np.array_equal(order, np.arange(len(words))) else " ".join(words[i] for i in order)
