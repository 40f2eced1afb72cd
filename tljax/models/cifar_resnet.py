"""The residual networks for CIFAR, ResNet-20 to ResNet-1202: three stages, parameter-free shortcuts (option A).

He, Zhang, Ren and Sun 2016, section 4.2, https://arxiv.org/abs/1512.03385. The names of the weights are those of the
PyTorch implementation in wide use, https://github.com/akamaster/pytorch_resnet_cifar10.
"""

import dataclasses
import functools
import re
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
from tljax.models.layers import BatchNorm, Conv
from tljax.models.resizing import channels_resize
from tljax.models.tower import Tower, with_map

HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class CifarResNetConfig:
    """The entries are ours, the reference has no config.

    Attributes:
      blocks: residual blocks in each stage; the depth is 6 · blocks + 2 for three stages.
      widths: channels of the stages.
      num_channels: of the input.
      batch_norm_eps: of every batch norm.
    """

    blocks: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    num_channels: int = 3
    batch_norm_eps: float = 1e-5


def configure(entries: Mapping[str, Any]) -> CifarResNetConfig:
    """Our entries → `CifarResNetConfig`; raises `UserError` for what is not implemented."""
    config = read_config(CifarResNetConfig, entries, what="CIFAR ResNet")
    if sorted(config.widths) != list(config.widths):
        raise UserError(f"widths is {list(config.widths)}; option A shortcuts only ever add channels.")
    return config


class Stem(nn.Module):
    """The first convolution."""

    config: CifarResNetConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        conv = Conv(c.widths[0], (3, 3), padding=1, kernel_init=HE_FAN_IN, name="conv")
        x = BatchNorm(c.batch_norm_eps, name="norm")(conv(carry["pixel_values"]), train)
        return {"hidden": jax.nn.relu(x)}


class Block(nn.Module):
    """Two 3×3 convolutions; where the shape changes, the shortcut takes every second pixel and pads channels with 0.

    `keep` puts the map into `pyramid`.
    """

    config: CifarResNetConfig
    width: int
    stride: int
    keep: bool = False

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x, epsilon = carry["hidden"], self.config.batch_norm_eps
        conv = functools.partial(Conv, self.width, (3, 3), padding=1, kernel_init=HE_FAN_IN)
        y = BatchNorm(epsilon, name="norm1")(conv(stride=self.stride, name="conv1")(x), train)
        y = BatchNorm(epsilon, name="norm2")(conv(name="conv2")(jax.nn.relu(y)), train)
        if self.stride != 1 or x.shape[-1] != self.width:
            missing = self.width - x.shape[-1]
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return with_map({**carry, "hidden": jax.nn.relu(x + y)}, self.keep)


class CifarResNet(Tower):
    """`embed, stage0_block0 …`."""

    config: CifarResNetConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        chain = {"embed": functools.partial(Stem, c)}
        for i, width in enumerate(c.widths):
            for j in range(c.blocks):
                keep = j == c.blocks - 1
                chain[f"stage{i}_block{j}"] = functools.partial(Block, c, width, 2 if i and not j else 1, keep)
        return chain

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        last = self.config.blocks - 1
        return ("embed", *(f"stage{i}_block{last}" for i in range(len(self.config.widths))))


def table(config: CifarResNetConfig, prefix: str) -> Table:
    """conv1, bn1, layer1.0.conv1 …"""
    rows = conv_rows(f"{prefix}conv1", f"{prefix}bn1", "backbone/embed/conv", "backbone/embed/norm")
    for i in range(len(config.widths)):
        for j in range(config.blocks):
            theirs, ours = f"{prefix}layer{i + 1}.{j}", f"backbone/stage{i}_block{j}"
            for k in (1, 2):
                rows += conv_rows(f"{theirs}.conv{k}", f"{theirs}.bn{k}", f"{ours}/conv{k}", f"{ours}/norm{k}")
    return Table(rows=tuple(rows), extras=(r".*\.num_batches_tracked", r"linear\..*"))


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Blocks, widths, channels and number of labels, from the names and shapes of the tensors.

    Raises:
      UserError: these are not the weights of such a network.
    """
    blocks = [int(m[1]) for name in shapes if (m := re.fullmatch(r"layer1\.(\d+)\.conv1\.weight", name))]
    if not blocks or "conv1.weight" not in shapes:
        raise UserError("These are no weights of a CIFAR ResNet: conv1.weight or layer1.0.conv1.weight is missing.")
    widths = []
    while (name := f"layer{len(widths) + 1}.0.conv1.weight") in shapes:
        widths.append(int(shapes[name][0]))
    entries = {"blocks": max(blocks) + 1, "widths": widths, "num_channels": int(shapes["conv1.weight"][1])}
    if "linear.weight" in shapes:
        entries.update(num_labels=int(shapes["linear.weight"][0]), architectures=[ARCHITECTURE])
    return entries


def finish(config: CifarResNetConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, H, W, D), pooled (B, D), its mean, and pyramid: the last map of each resolution, the finest first."""
    hidden = carry["hidden"]
    return {"hidden": hidden, "pooled": hidden.mean(axis=(1, 2)), "pyramid": carry.get("pyramid", ())}


ARCHITECTURE = "CifarResNetForImageClassification"
"""Ours: the reference's class has no name of its own."""

FAMILY = Family(
    name="cifar_resnet",
    configure=configure,
    backbone=CifarResNet,
    carry=dict.fromkeys(("pixel_values", "hidden", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    inputs=lambda config: {"pixel_values": jax.ShapeDtypeStruct((1, 32, 32, config.num_channels), jnp.float32)},
    table=table,
    prefixes=("",),
    heads={
        ARCHITECTURE: linear_classifier(ARCHITECTURE, prefix="", theirs="linear", pools=("pooled", "mean"), labels=10)
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={f"resnet{6 * n + 2}": {"blocks": n} for n in (3, 5, 7, 9, 18, 200)},
    resizes={"num_channels": channels_resize("backbone/embed/conv/kernel")},
    infer=infer,
)
