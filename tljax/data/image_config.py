"""`preprocessor_config.json` ↔ the options of an `ImageProcessor`, in all shapes that transformers has written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tljax.base.errors import UserError

RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers, which is how the file names them."""


class Defaults(NamedTuple):
    """What a class of image processors assumes where its file is silent."""

    resize: str = "stretch"
    resample: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop: bool = False
    crop_pct: float | None = None
    size: int = 224
    flip_channels: bool = False


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DEFAULTS = {
    "ViT": Defaults(resample=2),
    "DeiT": Defaults(crop=True, size=256),
    "Beit": Defaults(),
    "ConvNext": Defaults(resize="shortest", crop_pct=224 / 256, size=384),
    "CLIP": Defaults(resize="shortest", mean=CLIP_MEAN, std=CLIP_STD, crop=True),
    "Bit": Defaults(resize="shortest", mean=CLIP_MEAN, std=CLIP_STD, crop=True),
}
NO_CROP_FROM = 384
"""At this size and above, ConvNext's rule stretches the whole image and crops nothing."""


def options_of(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of `ImageProcessor` that mean the same as a preprocessor_config.json.

    Args:
      config: the file. The class is named by `image_processor_type` (with or without "Fast" or "Pil") or, in older
        files, by `feature_extractor_type`; an unknown class is read by the rules of ViT's.
      where: the file, for messages.

    Raises:
      UserError: sizes that are no sizes, an unknown filter, padding (which we do not do).
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    for ending in ("Fast", "Pil"):
        kind = kind.removesuffix(ending)
    default = DEFAULTS.get(kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor"), DEFAULTS["ViT"])
    crop_pct = config.get("crop_pct") or default.crop_pct
    if config.get("do_pad"):
        raise UserError(f"{where}: do_pad is set; tljax resizes and crops, and does not pad.")
    options: dict[str, Any] = {"resize": "none", "size": None, "resize_to": None}
    if config.get("do_resize", True):
        rule, to = _target(config.get("size", default.size), "shortest" if crop_pct else default.resize, where)
        options = {"resize": rule, "size": to if rule == "stretch" else None, "resize_to": to}
        if crop_pct:
            options = _by_crop_pct(to if isinstance(to, int) else to[0], float(crop_pct))
    crop = config.get("do_center_crop", default.crop)
    if crop and not crop_pct:
        options["size"] = _target(config.get("crop_size", 224), "stretch", where)[1]
    if options["resize"] == "stretch" and options["resize_to"] == options["size"]:
        options["resize_to"] = None
    resample = config.get("resample", default.resample)
    if resample not in range(len(RESAMPLES)):
        raise UserError(f"{where}: resample is {resample!r}, and must be Pillow's number of a filter, 0 to 5.")
    options["resample"] = RESAMPLES[resample]
    options["rescale"] = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    normal = config.get("do_normalize", True)
    options["mean"] = _values(config.get("image_mean") or default.mean) if normal else (0.0,)
    options["std"] = _values(config.get("image_std") or default.std) if normal else (1.0,)
    options["channels"] = "BGR" if config.get("do_flip_channel_order", default.flip_channels) else "RGB"
    return options


def config_of(processor: Any) -> dict[str, Any]:
    """The preprocessor_config.json of a class of transformers that does the same; raises `UserError` without one."""
    if processor.channels == "L":
        raise UserError("transformers has no image processor for one channel, so this one cannot be written.")
    config: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": processor.resize != "none",
        "do_rescale": processor.rescale != 1,
        "rescale_factor": processor.rescale,
        "do_normalize": True,
        "image_mean": list(processor.mean) * (3 // len(processor.mean)),
        "image_std": list(processor.std) * (3 // len(processor.std)),
        "resample": RESAMPLES.index(processor.resample),
    }
    if processor.channels == "BGR":
        config["do_flip_channel_order"] = True
    crops = processor.size is not None and (processor.resize != "stretch" or processor.resize_to is not None)
    config["do_center_crop"] = crops
    if crops:
        config["crop_size"] = _height_width(processor.size)
    if processor.resize == "shortest":
        return {**config, "size": {"shortest_edge": processor.shortest}, "image_processor_type": "CLIPImageProcessor"}
    if processor.resize == "stretch":
        config["size"] = _height_width(processor.resize_to or processor.size)
    return {**config, "image_processor_type": "DeiTImageProcessor" if crops else "ViTImageProcessor"}


def _by_crop_pct(size: int, crop_pct: float) -> dict[str, Any]:
    if size >= NO_CROP_FROM:
        return {"resize": "stretch", "size": (size, size), "resize_to": None}
    return {"resize": "shortest", "size": (size, size), "resize_to": int(size / crop_pct)}


def _target(size: Any, rule: str, where: str) -> tuple[str, Any]:
    """(rule, what it resizes to): ("stretch", (H, W)) or ("shortest", int)."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size and "longest_edge" not in size:
            return "shortest", int(size["shortest_edge"])
        if {"height", "width"} <= set(size):
            return "stretch", (int(size["height"]), int(size["width"]))
    elif isinstance(size, int):
        return (rule, size) if rule == "shortest" else (rule, (size, size))
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        return "stretch", (int(size[0]), int(size[1]))
    raise UserError(f"{where}: the size {size!r} is none that tljax knows (a number, height and width, shortest_edge).")


def _values(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),)


def _height_width(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
