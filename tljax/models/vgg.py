"""VGG: plain chains of 3×3 convolutions. Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556.

The weights have torchvision's names (`vgg11` to `vgg19`, with and without batch norms) or Keras' (`VGG16`, `VGG19`).
Inputs: torchvision's weights want RGB in [0, 1] with mean 0.485 0.456 0.406 and deviation 0.229 0.224 0.225; Keras'
want BGR from 0 to 255 with the means 103.939 116.779 123.68 taken off.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Family
from tljax.base.weights import AS_IS, CONV, Layout, Row, Table, row
from tljax.models import keras_names
from tljax.models.configs import read_config
from tljax.models.formats import dense_rows, linear_classifier
from tljax.models.inputs import start_pixels
from tljax.models.layers import BatchNorm, Conv, Dense, dropout, max_pool
from tljax.models.resizing import channels_resize
from tljax.models.tower import Tower, with_map

LABELS = 1000


@dataclasses.dataclass(frozen=True)
class VggConfig:
    """The entries are ours, the references have no config; the defaults are VGG-16.

    Attributes:
      widths, depths: channels and convolutions of each block.
      batch_norm: a batch norm after every convolution.
      fully_connected: whether the two fully connected layers are there; without them `pooled` is the mean of the map.
      hidden_size: their width.
      grid: side of the map that the first of them reads; another map is averaged to it, as torchvision does.
      dropout: rate after each of them.
      num_channels: of the input.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    fully_connected: bool = True
    hidden_size: int = 4096
    grid: int = 7
    dropout: float = 0.5
    num_channels: int = 3


def configure(entries: Mapping[str, Any]) -> VggConfig:
    """Our entries → `VggConfig`; raises `UserError` for what is not implemented."""
    config = read_config(VggConfig, entries, what="VGG")
    if len(config.widths) != len(config.depths):
        raise UserError(f"widths {list(config.widths)} and depths {list(config.depths)} must be equally long.")
    return config


class Block(nn.Module):
    """Convolutions, each with a relu, and a 2×2 maximum; `keep` puts the map into `pyramid`."""

    config: VggConfig
    width: int
    depth: int
    keep: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = carry.get("hidden", carry.get("pixel_values"))
        for k in range(self.depth):
            x = Conv(self.width, (3, 3), padding=1, use_bias=True, name=f"conv{k}")(x)
            x = BatchNorm(name=f"norm{k}")(x, train) if self.config.batch_norm else x
            x = jax.nn.relu(x)
        before = {key: x for key, x in carry.items() if key == "pyramid"}
        return with_map({**before, "hidden": max_pool(x, (2, 2), (2, 2))}, self.keep)


class FullyConnected(nn.Module):
    """A dense layer with relu and dropout; the first one reads the map, row by row, its channels last."""

    config: VggConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        if "features" in carry:
            x = carry["features"]
        else:
            x = adaptive_mean(carry["hidden"], c.grid)
            x = x.reshape(len(x), -1)
        x = jax.nn.relu(Dense(c.hidden_size, name="dense")(x))
        return {**carry, "features": dropout(self, x, c.dropout, train)}


def adaptive_mean(x: jax.Array, side: int) -> jax.Array:
    """(B, H, W, D) → (B, side, side, D): means over windows that overlap by less than a pixel, as torch makes them."""
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (jnp.asarray(_windows(size, side), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwd->bijd", rows, columns, x)


def _windows(size: int, count: int) -> np.ndarray:
    """(count, size): row i averages from the floor of i · size / count to the ceiling of (i + 1) · size / count."""
    place, index = np.arange(size), np.arange(count)[:, None]
    inside = (place >= index * size // count) & (place < -(-(index + 1) * size // count))
    return inside / inside.sum(axis=1, keepdims=True)


class Vgg(Tower):
    """`block0 …`, and `fc6`, `fc7`, as they are called in the literature, whatever the depth."""

    config: VggConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        pairs = enumerate(zip(c.widths, c.depths, strict=True))
        blocks = {f"block{i}": functools.partial(Block, c, width, depth, i > 0) for i, (width, depth) in pairs}
        return {**blocks, **{name: functools.partial(FullyConnected, c) for name in _dense_names(c)}}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(len(self.config.widths)))


def _dense_names(config: VggConfig) -> tuple[str, ...]:
    return ("fc6", "fc7") if config.fully_connected else ()


def finish(config: VggConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, H, W, D), pooled: the last fully connected layer, or the mean over the map; pyramid: the maps of
    strides 4, 8, 16 and 32."""
    pooled = carry["features"] if "features" in carry else carry["hidden"].mean(axis=(1, 2))
    return {"hidden": carry["hidden"], "pooled": pooled, "pyramid": carry.get("pyramid", ())}


def map_dense(side: int) -> Layout:
    """A dense layer on a flattened map: torch (O, C·H·W) ↔ kernel (H·W·C, O)."""
    return Layout(
        "map-dense",
        lambda x: (x.reshape(len(x), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(x)),),
        lambda x: (x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),),
    )


def table(config: VggConfig, prefix: str) -> Table:
    """torchvision's `features.N`, which count relus and maxima too, and `classifier.N`."""
    rows: list[Row] = []
    number = 0
    for i, depth in enumerate(config.depths):
        for k in range(depth):
            theirs, ours = f"{prefix}features.{number}", f"backbone/block{i}/conv{k}"
            rows += [row(f"{theirs}.weight", f"{ours}/kernel", CONV), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]
            if config.batch_norm:
                theirs, ours = f"{prefix}features.{number + 1}", f"backbone/block{i}/norm{k}"
                rows += [row(f"{theirs}.weight", f"{ours}/scale", AS_IS), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]
                rows.append(row(f"{theirs}.running_mean", f"batch_stats:{ours}/mean", AS_IS))
                rows.append(row(f"{theirs}.running_var", f"batch_stats:{ours}/var", AS_IS))
            number += 3 if config.batch_norm else 2
        number += 1
    if config.fully_connected:
        first, bias = f"{prefix}classifier.0.weight", f"{prefix}classifier.0.bias"
        rows.append(row(first, "backbone/fc6/dense/kernel", map_dense(config.grid)))
        rows.append(row(bias, "backbone/fc6/dense/bias", AS_IS))
        rows += dense_rows(f"{prefix}classifier.3", "backbone/fc7/dense")
    return Table(tuple(rows), extras=(r".*\.num_batches_tracked", r"classifier\..*"))


def keras_layers(config: VggConfig) -> list[keras_names.Layer]:
    """block1_conv1 … fc1, fc2."""
    layers = []
    for i, depth in enumerate(config.depths):
        for k in range(depth):
            layers.append(keras_names.conv(f"block{i + 1}_conv{k + 1}", f"backbone/block{i}/conv{k}"))
            if config.batch_norm:
                layers.append(keras_names.norm(f"block{i + 1}_norm{k + 1}", f"backbone/block{i}/norm{k}"))
    names = enumerate(_dense_names(config), 1)
    return [*layers, *(keras_names.dense(f"fc{k}", f"backbone/{name}/dense") for k, name in names)]


def keras_table(spelling: str, config: VggConfig, prefix: str) -> Table:
    """The names of `VGG16` and `VGG19` in either of Keras' formats."""
    return Table(tuple(keras_names.keras_rows(keras_layers(config), spelling)), extras=keras_names.EXTRAS)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths, depths, batch norms, fully connected layers and the number of labels, from names and shapes.

    Raises:
      UserError: these are not the weights of such a network.
    """
    if any(name.startswith("features.") for name in shapes):
        return _infer_torch(shapes)
    found: dict[int, list[tuple[int, ...]]] = {}
    convs, denses = keras_names.kernels(shapes, "conv2d"), keras_names.kernels(shapes, "dense")
    if convs:  # Keras 3 does not say where a block ends; the networks that have been published do.
        depths = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4), 10: (2, 2, 2, 2, 2), 8: (1, 1, 2, 2, 2)}.get(len(convs))
        if depths is None:
            raise UserError(f"These are no weights of a VGG: they have 8, 10, 13 or 16 convolutions, not {len(convs)}.")
        for i, depth in enumerate(depths):
            found[i] = convs[sum(depths[:i]) :][:depth]
    else:
        for name, shape in shapes.items():
            if m := re.fullmatch(r"block(\d+)_conv\d+/vars/0", name):
                found.setdefault(int(m[1]) - 1, []).append(shape)
        denses = [shapes[name] for key in ("fc1", "fc2", "predictions") if (name := f"{key}/vars/0") in shapes]
    if not found or any(len(shape) != 4 or shape[:2] != (3, 3) for block in found.values() for shape in block):
        raise UserError(f"These are no weights of a VGG: none of {', '.join(MARKS)} is there, or a kernel is not 3×3.")
    blocks = [found[i] for i in sorted(found)]
    entries = {
        "widths": [int(block[0][3]) for block in blocks],
        "depths": [len(block) for block in blocks],
        "num_channels": int(blocks[0][0][2]),
        "fully_connected": len(denses) >= 2,
    }
    return {**entries, **_dense_entries([shape[::-1] for shape in denses], entries["widths"][-1])}


MARKS = ("features.0.weight", "layers/conv2d/vars/0", "block1_conv1/vars/0")


def _infer_torch(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    kernels = {
        int(m[1]): shape
        for name, shape in shapes.items()
        if (m := re.fullmatch(r"features\.(\d+)\.weight", name)) and len(shape) == 4
    }
    if 0 not in kernels or any(shape[2:] != (3, 3) for shape in kernels.values()):
        raise UserError("These are no weights of a VGG: features.0.weight is missing, or a kernel is not 3×3.")
    batch_norm = "features.1.running_mean" in shapes
    step, depths, widths = 3 if batch_norm else 2, [], []
    before = None
    for number in sorted(kernels):
        if before is None or number != before + step:
            depths, widths = [*depths, 0], [*widths, int(kernels[number][0])]
        depths[-1] += 1
        before = number
    denses = [tuple(shapes[name]) for k in (0, 3, 6) if (name := f"classifier.{k}.weight") in shapes]
    entries = {
        "widths": widths,
        "depths": depths,
        "batch_norm": batch_norm,
        "num_channels": int(kernels[0][1]),
        "fully_connected": len(denses) >= 2,
    }
    return {**entries, **_dense_entries(denses, widths[-1])}


def _dense_entries(denses: list[tuple[int, ...]], width: int) -> dict[str, Any]:
    """What the shapes (out, in) of the dense layers say."""
    entries: dict[str, Any] = {}
    if len(denses) >= 2:
        entries = {"hidden_size": int(denses[0][0]), "grid": round((denses[0][1] / width) ** 0.5)}
    if len(denses) in (1, 3):
        entries.update(num_labels=int(denses[-1][0]), architectures=[ARCHITECTURE])
    return entries


ARCHITECTURE = "VGG"
POOLS = {"pools": ("pooled",), "labels": LABELS}


def _torch_head(config: VggConfig) -> tuple[Row, ...]:
    return tuple(dense_rows("classifier.6" if config.fully_connected else "classifier.0", "head/out"))


FAMILY = Family(
    name="vgg",
    configure=configure,
    backbone=Vgg,
    carry=dict.fromkeys(("pixel_values", "hidden", "features", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    # No size belongs to the model; a small one traces quickly.
    inputs=lambda config: {"pixel_values": jax.ShapeDtypeStruct((1, 64, 64, config.num_channels), jnp.float32)},
    table=table,
    prefixes=("",),
    heads={
        "VGG": linear_classifier(ARCHITECTURE, prefix="", theirs="", **POOLS)._replace(rows=_torch_head),
        **keras_names.classifiers(ARCHITECTURE, keras_layers, **POOLS),
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/.*/conv\d+/kernel", (None, None, None, ("fsdp", "tensor"))),
        (r"backbone/.*/dense/kernel", ("fsdp", "tensor")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={
        f"vgg{11 + extra}{'_bn' * batch_norm}": {"depths": depths, "batch_norm": batch_norm}
        for batch_norm in (False, True)
        for extra, depths in (
            (0, [1, 1, 2, 2, 2]),
            (2, [2, 2, 2, 2, 2]),
            (5, [2, 2, 3, 3, 3]),
            (8, [2, 2, 4, 4, 4]),
        )
    },
    resizes={"num_channels": channels_resize("backbone/block0/conv0/kernel")},
    infer=infer,
    spellings={name: functools.partial(keras_table, name) for name in keras_names.SPELLINGS},
)
