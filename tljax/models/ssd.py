"""SSD on VGG-16: a detector with default boxes on six maps. Liu et al. 2016, arXiv:1512.02325.

The weights have torchvision's names (`ssd300_vgg16`), whose inputs are RGB with mean (0.48235, 0.45882, 0.40784) and
deviation 1 / 255 of values from 0 to 1.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, CONV, Row, Table, row
from tljax.models.boxes import from_centers, to_centers
from tljax.models.configs import pair, read_config
from tljax.models.formats import describe_labels
from tljax.models.inputs import start_pixels
from tljax.models.layers import Conv, max_pool
from tljax.models.tower import Tower

RATIOS = (2, 3)
"""Width to height of the default boxes that are no squares, and its inverse."""
VARIANCES = (0.1, 0.1, 0.2, 0.2)
"""The unit of the offsets: of centres in sizes of the default box, and of the logarithms of sizes."""
NORM_START = 20.0
XAVIER = nn.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class SsdConfig:
    """The defaults are SSD300.

    Attributes:
      image_size: (H, W); the default boxes belong to it.
      num_channels: of the input.
      widths, depths: channels and convolutions of the groups of VGG, between which maps are halved.
      bridge: channels of fc6 and fc7.
      reduced, extra: channels of the two convolutions of each further stage.
      halved: how many of the further stages halve their map; the rest have a 3 × 3 kernel without padding.
      ratios: how many of `RATIOS` the default boxes of each map have.
      scales: sides of the default boxes of each map in per cent of the image, and one more.
      steps: pixels from one default box to the next.
    """

    image_size: tuple[int, int] = (300, 300)
    num_channels: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    bridge: int = 1024
    reduced: tuple[int, ...] = (256, 128, 128, 128)
    extra: tuple[int, ...] = (512, 256, 256, 256)
    halved: int = 2
    ratios: tuple[int, ...] = (1, 2, 2, 2, 1, 1)
    scales: tuple[int, ...] = (7, 15, 33, 51, 69, 87, 105)
    steps: tuple[int, ...] = (8, 16, 32, 64, 100, 300)


def configure(entries: Mapping[str, Any]) -> SsdConfig:
    """config.json → `SsdConfig`; raises `UserError` for lists whose lengths do not fit."""
    entries = {**entries, "image_size": pair(entries.get("image_size", SsdConfig.image_size))}
    config = read_config(SsdConfig, entries, what="SSD")
    maps = 2 + len(config.extra)
    wanted = {"widths": 5, "depths": 5, "reduced": maps - 2, "ratios": maps, "scales": maps + 1, "steps": maps}
    raise_faults(
        "This config.json describes no SSD that can be built:",
        [
            f"{name} has {len(getattr(config, name))} numbers, and must have {count}."
            for name, count in wanted.items()
            if len(getattr(config, name)) != count
        ]
        + [f"ratios is {config.ratios}; there are {len(RATIOS)}."] * (max(config.ratios) > len(RATIOS)),
    )
    return config


class ConvStage(nn.Module):
    """A convolution of VGG and relu, after a pooling where `pool` says which; `keep` puts the map into `pyramid`."""

    features: int
    pool: int = 0
    keep: bool = False

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = carry["hidden"] if "hidden" in carry else carry["pixel_values"]
        if self.pool:
            # The third pooling also takes the odd row and column at the edge, as the original does.
            edges = [(0, size % 2 if self.pool == 3 else 0) for size in x.shape[1:3]]
            x = max_pool(x, (2, 2), (2, 2), edges)
        x = nn.relu(Conv(self.features, (3, 3), padding=1, use_bias=True, name="conv")(x))
        carry = {name: value for name, value in carry.items() if name != "pixel_values"}
        if self.keep:
            carry["pyramid"] = (L2Norm(name="norm")(x),)
        return {**carry, "hidden": x}


class L2Norm(nn.Module):
    """Every pixel's features scaled to one length, and by a learned factor a channel. Liu, Rabinovich and Berg 2015."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(NORM_START), (x.shape[-1],))
        square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        # The maximum is taken of the squares: a pixel without features has no finite gradient of the root.
        return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * scale).astype(x.dtype)


class Bridge(nn.Module):
    """A pooling that keeps the size, and fc6: a 3 × 3 convolution with holes (Chen et al. 2015)."""

    features: int

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = max_pool(carry["hidden"], (3, 3), (1, 1), ((1, 1), (1, 1)))
        conv = Conv(self.features, (3, 3), padding=6, dilation=6, use_bias=True, kernel_init=XAVIER, name="conv")
        return {**carry, "hidden": nn.relu(conv(x))}


class Mapped(nn.Module):
    """Convolutions with relu, (name, channels, kernel, stride, padding) each; the last map goes into `pyramid`."""

    layers: tuple[tuple[str, int, int, int, int], ...]

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = carry["hidden"]
        for name, features, size, stride, edge in self.layers:
            x = Conv(features, (size, size), stride, edge, use_bias=True, kernel_init=XAVIER, name=name)(x)
            x = nn.relu(x)
        return {**carry, "hidden": x, "pyramid": (*carry["pyramid"], x)}


class Ssd(Tower):
    """`conv1_1 … conv5_3, fc6, fc7, extra1 …`; `conv4_…`, `fc7` and what follows give the maps."""

    config: SsdConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        chain: dict[str, Any] = {}
        for group, place, width in _convs(c):
            pool, keep = (group - 1 if place == 1 else 0), (group, place) == (4, c.depths[3])
            chain[f"conv{group}_{place}"] = functools.partial(ConvStage, width, pool, keep)
        chain["fc6"] = functools.partial(Bridge, c.bridge)
        chain["fc7"] = functools.partial(Mapped, (("conv", c.bridge, 1, 1, 0),))
        for i, (reduced, width) in enumerate(zip(c.reduced, c.extra, strict=True)):
            stride, edge = (2, 1) if i < c.halved else (1, 0)
            layers = (("reduce", reduced, 1, 1, 0), ("conv", width, 3, stride, edge))
            chain[f"extra{i + 1}"] = functools.partial(Mapped, layers)
        return chain


def _convs(config: SsdConfig) -> list[tuple[int, int, int]]:
    """(group, place in it, channels) of VGG's convolutions, counted from 1."""
    groups = enumerate(zip(config.depths, config.widths, strict=True), 1)
    return [(group, place, width) for group, (depth, width) in groups for place in range(1, depth + 1)]


class SsdHead(nn.Module):
    """A convolution for the classes and one for the offsets of the default boxes on each map of `pyramid`.

    Gives `logits` (B, N, 1 + Y), background first, `offsets` (B, N, 4), and `default_boxes` (N, 4), x0 y0 x1 y1 as
    shares of the input. Parameters: `class0/kernel`, `class0/bias`, `offset0/…`, `class1/…`.

    Attributes:
      classes: Y.
      image_size: (H, W) of the input in pixels.
      ratios, scales, steps: as in `SsdConfig`.
    """

    classes: int
    image_size: tuple[int, int]
    ratios: tuple[int, ...]
    scales: tuple[int, ...]
    steps: tuple[int, ...]

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        found: dict[str, list] = {"class": [], "offset": []}
        for i, (x, ratios) in enumerate(zip(outputs["pyramid"], self.ratios, strict=True)):
            for name, depth in (("class", 1 + self.classes), ("offset", 4)):
                features = depth * (2 + 2 * ratios)
                conv = Conv(features, (3, 3), padding=1, use_bias=True, kernel_init=XAVIER, name=f"{name}{i}")
                found[name].append(conv(x).reshape(x.shape[0], -1, depth))
        grids = tuple(x.shape[1:3] for x in outputs["pyramid"])
        return {
            **outputs,
            "logits": jnp.concatenate(found["class"], axis=1),
            "offsets": jnp.concatenate(found["offset"], axis=1),
            "default_boxes": jnp.asarray(
                default_boxes(grids, self.image_size, self.ratios, self.scales, self.steps), jnp.float32
            ),
        }


def default_boxes(
    grids: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    ratios: Sequence[int],
    scales: Sequence[int],
    steps: Sequence[int],
) -> np.ndarray:
    """(N, 4), x0 y0 x1 y1 as shares of the image; N counts maps, rows, columns and shapes. Section 2.2 of the paper.

    The shapes of map k: a square of scale k, one of the geometric mean of scales k and k + 1, and for each ratio a wide
    and a high one. Sides are at most the image's; boxes may reach beyond it.

    Args:
      grids: (rows, columns) of each map.
      image_size: (H, W) in pixels.
      ratios, scales, steps: as in `SsdConfig`.
    """
    found = []
    for k, (rows, columns) in enumerate(grids):
        side, mean = scales[k] / 100, math.sqrt(scales[k] * scales[k + 1]) / 100
        shapes = [(side, side), (mean, mean)]
        for ratio in RATIOS[: ratios[k]]:
            root = math.sqrt(ratio)
            shapes += [(side * root, side / root), (side / root, side * root)]
        for i, j in itertools.product(range(rows), range(columns)):
            centre = ((j + 0.5) * steps[k] / image_size[1], (i + 0.5) * steps[k] / image_size[0])
            found += [(*centre, min(width, 1.0), min(height, 1.0)) for width, height in shapes]
    boxes = np.array(found)
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def encode(boxes: jax.Array, defaults: jax.Array) -> jax.Array:
    """Boxes as offsets from their default boxes, both (…, 4) as x0 y0 x1 y1. Equation 2 of the paper."""
    wanted, own = to_centers(boxes), to_centers(defaults)
    centre = (wanted[..., :2] - own[..., :2]) / own[..., 2:]
    size = jnp.log(wanted[..., 2:] / own[..., 2:])
    return jnp.concatenate([centre, size], axis=-1) / jnp.array(VARIANCES)


def decode(offsets: jax.Array, defaults: jax.Array) -> jax.Array:
    """The inverse of `encode`; sizes are at most 1000 / 16 times those of the default box, so that none overflows."""
    own, moved = to_centers(defaults), offsets * jnp.array(VARIANCES)
    centre = own[..., :2] + moved[..., :2] * own[..., 2:]
    size = own[..., 2:] * jnp.exp(jnp.minimum(moved[..., 2:], math.log(1000 / 16)))
    return from_centers(jnp.concatenate([centre, size], axis=-1))


def make_head(config: SsdConfig, classes: int) -> SsdHead:
    """The head for so many classes, without the background."""
    return SsdHead(classes, config.image_size, config.ratios, config.scales, config.steps)


def finish(config: SsdConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """`pyramid`, the maps that the head reads, fine ones first; `hidden`, the last; no `pooled`."""
    return {"hidden": carry.get("hidden"), "pooled": None, "pyramid": carry.get("pyramid", ())}


def _layer(theirs: str, ours: str) -> tuple[Row, Row]:
    return row(f"{theirs}.weight", f"{ours}/kernel", CONV), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)


def table(config: SsdConfig, prefix: str) -> Table:
    """torchvision's names: `features` up to conv4, the rest of VGG with fc6 and fc7 in `extra.0`, then `extra.1` …"""
    rows = [row(f"{prefix}scale_weight", f"backbone/conv4_{config.depths[3]}/norm/scale", AS_IS)]
    number = 0
    for group, place, _ in _convs(config):
        if group == 5:
            theirs = f"{prefix}extra.0.{2 * place - 1}"
        else:
            theirs, number = f"{prefix}features.{number}", number + 2
            number += place == config.depths[group - 1]
        rows += _layer(theirs, f"backbone/conv{group}_{place}/conv")
    last = f"{prefix}extra.0.{1 + 2 * config.depths[4]}"
    rows += [*_layer(f"{last}.1", "backbone/fc6/conv"), *_layer(f"{last}.3", "backbone/fc7/conv")]
    for i in range(1, 1 + len(config.extra)):
        rows += [
            *_layer(f"{prefix}extra.{i}.0", f"backbone/extra{i}/reduce"),
            *_layer(f"{prefix}extra.{i}.2", f"backbone/extra{i}/conv"),
        ]
    return Table(rows=tuple(rows), extras=(r"head\..*",))


def head_rows(config: SsdConfig) -> tuple[Row, ...]:
    """The convolutions of the classes and of the offsets."""
    kinds = {"classification": "class", "regression": "offset"}
    return tuple(
        entry
        for theirs, ours in kinds.items()
        for i in range(len(config.ratios))
        for entry in _layer(f"head.{theirs}_head.module_list.{i}", f"head/{ours}{i}")
    )


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The number of classes, for torchvision's file; raises `UserError` for other tensors."""
    if "backbone.scale_weight" not in shapes or "backbone.extra.1.0.weight" not in shapes:
        raise UserError("These are no weights of an SSD: backbone.scale_weight or backbone.extra.1.0 is missing.")
    name = "head.classification_head.module_list.0.weight"
    if name not in shapes:
        return {}
    per_place = 2 + 2 * SsdConfig.ratios[0]
    return {"num_labels": int(shapes[name][0]) // per_place - 1, "architectures": [ARCHITECTURE]}


def _own_head(config: SsdConfig, entries: Mapping[str, Any]) -> SsdHead:
    return make_head(config, entries.get("num_labels") or len(entries.get("id2label") or range(90)))


ARCHITECTURE = "SSD"
"""torchvision's class."""

FAMILY = Family(
    name="ssd",
    configure=configure,
    backbone=Ssd,
    carry=dict.fromkeys(("pixel_values", "hidden", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    inputs=lambda config: {
        "pixel_values": jax.ShapeDtypeStruct((1, *config.image_size, config.num_channels), jnp.float32)
    },
    table=table,
    prefixes=("backbone.", ""),
    heads={
        ARCHITECTURE: HeadFormat(
            architecture=ARCHITECTURE,
            head=_own_head,
            matches=lambda head: isinstance(head, SsdHead),
            rows=head_rows,
            prefix="backbone.",
            describe=describe_labels,
        )
    },
    own_pool="mean",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={"ssd300_vgg16": {}},
    infer=infer,
)
