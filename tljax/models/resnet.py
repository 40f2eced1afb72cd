"""ResNet: residual networks for images. He, Zhang, Ren and Sun 2016, https://arxiv.org/abs/1512.03385.

With basic or bottleneck blocks, as in transformers' `resnet`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Family
from tljax.base.weights import Table
from tljax.models.configs import read_config
from tljax.models.formats import conv_rows, linear_classifier
from tljax.models.inputs import start_pixels
from tljax.models.layers import ACTIVATIONS, BatchNorm, Conv, max_pool
from tljax.models.resizing import channels_resize
from tljax.models.tower import Tower, with_map


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The entries of config.json that shape a ResNet, with transformers' names and defaults."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


def configure(entries: Mapping[str, Any]) -> ResNetConfig:
    """config.json → `ResNetConfig`; raises `UserError` for what is not implemented."""
    accepted = {"hidden_act": ACTIVATIONS, "layer_type": ("basic", "bottleneck")}
    config = read_config(ResNetConfig, entries, what="ResNet", accepted=accepted)
    if len(config.hidden_sizes) != len(config.depths):
        raise UserError(
            f"hidden_sizes {list(config.hidden_sizes)} and depths {list(config.depths)} must be equally long, with one "
            "entry a stage."
        )
    return config


class ConvNorm(nn.Module):
    """A convolution, a batch norm, an activation (None has none)."""

    features: int
    kernel: int = 3
    stride: int = 1
    activation: str | None = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        k = self.kernel
        x = Conv(self.features, (k, k), self.stride, padding=k // 2, name="conv")(x)
        x = BatchNorm(name="norm")(x, train)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


class Stem(nn.Module):
    """A 7×7 convolution and a 3×3 maximum, both with stride 2; `keep` puts the map into `pyramid`."""

    config: ResNetConfig
    keep: bool = False

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        x = ConvNorm(c.embedding_size, 7, 2, c.hidden_act, name="layer0")(carry["pixel_values"], train)
        return with_map({"hidden": max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))}, self.keep)


class Block(nn.Module):
    """A residual block; its shortcut is a 1×1 convolution where the shape changes; `keep` as for `Stem`."""

    config: ResNetConfig
    features: int
    stride: int
    keep: bool = False

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, x = self.config, carry["hidden"]
        y = x
        for k, layer in enumerate(_layers(c, self.features, self.stride)):
            y = layer(name=f"layer{k}")(y, train)
        if _has_shortcut(x.shape[-1], self.features, self.stride):
            x = ConvNorm(self.features, 1, self.stride, None, name="shortcut")(x, train)
        return with_map({**carry, "hidden": ACTIVATIONS[c.hidden_act](x + y)}, self.keep)


def _layers(config: ResNetConfig, features: int, stride: int) -> tuple[functools.partial, ...]:
    """The convolutions of a block. The reference has relu inside, whatever `hidden_act` says."""
    if config.layer_type == "basic":
        return functools.partial(ConvNorm, features, 3, stride), functools.partial(ConvNorm, features, 3, 1, None)
    first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
    return (
        functools.partial(ConvNorm, features // 4, 1, first),
        functools.partial(ConvNorm, features // 4, 3, second),
        functools.partial(ConvNorm, features, 1, 1, None),
    )


def _has_shortcut(before: int, after: int, stride: int) -> bool:
    return before != after or stride != 1


def _blocks(config: ResNetConfig) -> list[tuple[int, int, int, int, int]]:
    """(stage, block, channels before, channels after, stride) of every block."""
    blocks, before = [], config.embedding_size
    for i, (after, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        for j in range(depth):
            stride = 2 if j == 0 and (i > 0 or config.downsample_in_first_stage) else 1
            blocks.append((i, j, before, after, stride))
            before = after
    return blocks


class ResNet(Tower):
    """`embed, stage0_block0 …`."""

    config: ResNetConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = _blocks(c)
        # A map is the last of its resolution where the next block halves it.
        last = [stride == 2 for *_, stride in blocks] + [True]
        stages = {
            f"stage{i}_block{j}": functools.partial(Block, c, features, stride, keep)
            for (i, j, _, features, stride), keep in zip(blocks, last[1:], strict=True)
        }
        return {"embed": functools.partial(Stem, c, last[0]), **stages}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return ("embed", *(f"stage{i}_block{depth - 1}" for i, depth in enumerate(self.config.depths)))


def finish(config: ResNetConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, H, W, D), pooled (B, D), its mean, and pyramid: the last map of each resolution, the finest first."""
    hidden = carry["hidden"]
    return {"hidden": hidden, "pooled": hidden.mean(axis=(1, 2)), "pyramid": carry.get("pyramid", ())}


def table(config: ResNetConfig, prefix: str) -> Table:
    """transformers' names of a ResNetModel."""

    def layer(theirs: str, ours: str) -> list:
        return conv_rows(f"{theirs}.convolution", f"{theirs}.normalization", f"{ours}/conv", f"{ours}/norm")

    rows = layer(f"{prefix}embedder.embedder", "backbone/embed/layer0")
    for i, j, before, after, stride in _blocks(config):
        theirs, ours = f"{prefix}encoder.stages.{i}.layers.{j}", f"backbone/stage{i}_block{j}"
        for k in range(len(_layers(config, after, stride))):
            rows += layer(f"{theirs}.layer.{k}", f"{ours}/layer{k}")
        if _has_shortcut(before, after, stride):
            rows += layer(f"{theirs}.shortcut", f"{ours}/shortcut")
    return Table(rows=tuple(rows), extras=(r".*\.num_batches_tracked", r"classifier\..*"))


BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}

FAMILY = Family(
    name="resnet",
    configure=configure,
    backbone=ResNet,
    carry=dict.fromkeys(("pixel_values", "hidden", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    # No size belongs to the model; a small one traces quickly.
    inputs=lambda config: {"pixel_values": jax.ShapeDtypeStruct((1, 64, 64, config.num_channels), jnp.float32)},
    table=table,
    prefixes=("resnet.", ""),
    heads={
        "ResNetForImageClassification": linear_classifier(
            "ResNetForImageClassification", prefix="resnet.", theirs="classifier.1", pools=("pooled", "mean")
        )
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, ("fsdp", "tensor"))),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={
        "resnet-18": {**BASIC, "depths": [2, 2, 2, 2]},
        "resnet-26": {"depths": [2, 2, 2, 2]},
        "resnet-34": {**BASIC, "depths": [3, 4, 6, 3]},
        "resnet-50": {"depths": [3, 4, 6, 3]},
        "resnet-101": {"depths": [3, 4, 23, 3]},
        "resnet-152": {"depths": [3, 8, 36, 3]},
    },
    resizes={"num_channels": channels_resize("backbone/embed/layer0/conv/kernel")},
)
