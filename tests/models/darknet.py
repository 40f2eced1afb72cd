"""Small Darknet networks for tests: a text with every section, a random stream for it, OpenCV's results."""

import math
from pathlib import Path

import numpy as np

from tljax.checkpoints.darknet_format import stream

HEADER = np.array([0, 2, 5, 1234, 0], "<i4").tobytes()


def section(kind: str, **options) -> str:
    return f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items()) + "\n"


def conv(filters: int, size: int = 1, activation: str = "leaky", *, norm: int = 1, **options) -> str:
    given = {"filters": filters, "size": size, "stride": 1, "pad": 1, "activation": activation, **options}
    return section("convolutional", **({"batch_normalize": 1} if norm else {}), **given)


def detector(mask: str, *, classes: int = 3, anchors: str = "4,6, 9,5, 14,20", **options) -> str:
    """The convolution and its [yolo]."""
    activation = "logistic" if options.get("new_coords") else "linear"
    filters = (5 + classes) * len(mask.split(","))
    num = len(anchors.split(",")) // 2
    yolo = section("yolo", mask=mask, anchors=anchors, classes=classes, num=num, jitter=0.3, **options)
    return conv(filters, 1, activation, norm=0) + yolo


NET = section("net", batch=4, width=64, height=48, channels=3, learning_rate=0.01)

EVERYTHING = "".join(
    (
        "# every section and activation\n",
        NET,
        conv(8, 3, "mish", stride=2),  # 0
        conv(8, 3, "swish", groups=8),  # 1
        section("maxpool", size=2, stride=2),  # 2
        conv(8, 3, "tanh", norm=0, groups=2),  # 3
        section("route", layers=-1, groups=2, group_id=1),  # 4
        conv(8, 3, "relu", padding=2, pad=0),  # 5, two pixels larger
        conv(8, 3, "logistic", pad=0),  # 6, two pixels smaller
        section("shortcut", **{"from": -4, "activation": "leaky"}),  # 7
        section("dropout", probability=0.3),  # 8
        conv(12, 3, stride=2),  # 9
        section("maxpool", size=3, stride=1),  # 10
        section("route", layers=-2),  # 11
        section("maxpool", size=5, stride=1),  # 12
        section("route", layers="-1,-3,-4"),  # 13, SPP
        conv(10, 5, groups=1),  # 14
        section("maxpool", size=2, stride=1),  # 15
        detector("1,2", scale_x_y=1.1),  # 16, 17
        section("route", layers=-3),  # 18
        section("upsample", stride=2),  # 19
        section("route", layers="-1, 7"),  # 20
        conv(9, 3, "linear"),  # 21
        section("shortcut", **{"from": 21, "activation": "linear"}),  # 22
        detector("0", scale_x_y=2.0, new_coords=1),  # 23, 24
    )
)
OUTPUTS = ("conv_16", "conv_23", "yolo_17", "yolo_24")
"""OpenCV's names of what the heads give, before and after decoding."""


def write(folder: Path, cfg: str, *, stem: str = "net", seed: int = 0) -> Path:
    """Writes the text and a random stream; returns the .weights file."""
    generator = np.random.default_rng(seed)
    parts = [HEADER]
    for name, shape in stream(cfg):
        if name.endswith(("scales", "variances")):
            values = generator.uniform(0.5, 1.5, shape)
        elif name.endswith("weights"):
            values = generator.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape)
        else:
            values = generator.normal(0, 0.3, shape)
        parts.append(values.astype("<f4").tobytes())
    (folder / f"{stem}.cfg").write_text(cfg)
    file = folder / f"{stem}.weights"
    file.write_bytes(b"".join(parts))
    return file


def opencv(weights: Path, pixels: np.ndarray, names: tuple[str, ...]) -> list[np.ndarray]:
    """OpenCV's results for pixels (B, H, W, C); maps as (B, H, W, C) too."""
    import cv2

    net = cv2.dnn.readNetFromDarknet(str(weights.with_suffix(".cfg")), str(weights))
    net.setInput(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in net.forward(list(names))]
