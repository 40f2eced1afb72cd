"""Inception v3. Szegedy et al. 2016, Rethinking the Inception architecture, https://arxiv.org/abs/1512.00567.

The weights have torchvision's names (`inception_v3`; its auxiliary classifier is kept as it is, and does not run) or
Keras' (`InceptionV3`). Inputs, 299 × 299: RGB from -1 to 1, that is [0, 1] with mean 0.5 and deviation 0.5.
torchvision's pretrained weights want the same; its `transform_input` makes that of images normalised in its usual way.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Family
from tljax.base.weights import AS_IS, CONV, Row, Table, row
from tljax.models import keras_names
from tljax.models.configs import read_config
from tljax.models.formats import linear_classifier
from tljax.models.inputs import start_pixels
from tljax.models.layers import BatchNorm, Conv, max_pool
from tljax.models.resizing import channels_resize
from tljax.models.tower import Tower, with_map

LABELS = 1000


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """The entries are ours, the references have no config; the defaults are torchvision's.

    Attributes:
      divisor: the channels of every convolution are the published ones divided by it.
      norm_scale: whether batch norms have a scale (gamma); Keras' have none.
      count_padding: whether a 3×3 mean at the border counts the padding as zeros, as torchvision does, or leaves it
        out, as Keras does.
      batch_norm_eps: of every batch norm.
      num_channels: of the input.
    """

    divisor: int = 1
    norm_scale: bool = True
    count_padding: bool = True
    batch_norm_eps: float = 1e-3
    num_channels: int = 3


def configure(entries: Mapping[str, Any]) -> InceptionConfig:
    """Our entries → `InceptionConfig`; raises `UserError` for what is not implemented."""
    config = read_config(InceptionConfig, entries, what="Inception v3")
    if 16 % config.divisor:
        raise UserError(f"divisor is {config.divisor}, and must divide 16, as all published numbers of channels do.")
    return config


class Unit(NamedTuple):
    """A convolution with batch norm and relu.

    Attributes:
      name: in torchvision, within its block.
      width: channels.
      kernel: (H, W).
      stride: of both axes; with stride 2 there is no padding.
      padded: whether the map keeps its size, for stride 1.
    """

    name: str
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    padded: bool = True


class Branch(NamedTuple):
    """What reads the map of the block before.

    Attributes:
      units: one after another.
      pool: "", "mean" or "max": a 3×3 pooling before the units.
      fork: units that all read the result of `units`, and whose results stand side by side.
    """

    units: tuple[Unit, ...] = ()
    pool: str = ""
    fork: tuple[Unit, ...] = ()


STEM = (
    (
        Unit("Conv2d_1a_3x3", 32, (3, 3), 2),
        Unit("Conv2d_2a_3x3", 32, (3, 3), padded=False),
        Unit("Conv2d_2b_3x3", 64, (3, 3)),
    ),
    (Unit("Conv2d_3b_1x1", 80, (1, 1)), Unit("Conv2d_4a_3x3", 192, (3, 3), padded=False)),
)
"""Each group is followed by a 3×3 maximum with stride 2."""


def _first(pool_width: int) -> tuple[Branch, ...]:
    """35 × 35."""
    double = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return (
        Branch((Unit("branch1x1", 64, (1, 1)),)),
        Branch((Unit("branch5x5_1", 48, (1, 1)), Unit("branch5x5_2", 64, (5, 5)))),
        Branch(tuple(Unit(name, width, (k, k)) for name, width, k in double)),
        Branch((Unit("branch_pool", pool_width, (1, 1)),), pool="mean"),
    )


def _second(width: int) -> tuple[Branch, ...]:
    """17 × 17, with kernels of 1 × 7 and 7 × 1."""
    row_, column = (1, 7), (7, 1)
    single = (("branch7x7_1", width, (1, 1)), ("branch7x7_2", width, row_), ("branch7x7_3", 192, column))
    kernels = ((1, 1), column, row_, column, row_)
    double = [(f"branch7x7dbl_{k}", 192 if k == 5 else width, kernel) for k, kernel in enumerate(kernels, 1)]
    return (
        Branch((Unit("branch1x1", 192, (1, 1)),)),
        Branch(tuple(Unit(*each) for each in single)),
        Branch(tuple(Unit(*each) for each in double)),
        Branch((Unit("branch_pool", 192, (1, 1)),), pool="mean"),
    )


def _third() -> tuple[Branch, ...]:
    """8 × 8, with branches that fork."""
    forks = [
        tuple(Unit(f"{name}{k}", 384, kernel) for k, kernel in (("a", (1, 3)), ("b", (3, 1))))
        for name in ("branch3x3_2", "branch3x3dbl_3")
    ]
    return (
        Branch((Unit("branch1x1", 320, (1, 1)),)),
        Branch((Unit("branch3x3_1", 384, (1, 1)),), fork=forks[0]),
        Branch((Unit("branch3x3dbl_1", 448, (1, 1)), Unit("branch3x3dbl_2", 384, (3, 3))), fork=forks[1]),
        Branch((Unit("branch_pool", 192, (1, 1)),), pool="mean"),
    )


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _first(32),
    "Mixed_5c": _first(64),
    "Mixed_5d": _first(64),
    "Mixed_6a": (
        Branch((Unit("branch3x3", 384, (3, 3), 2),)),
        Branch((*_first(64)[2].units[:2], Unit("branch3x3dbl_3", 96, (3, 3), 2))),
        Branch(pool="max"),
    ),
    "Mixed_6b": _second(128),
    "Mixed_6c": _second(160),
    "Mixed_6d": _second(160),
    "Mixed_6e": _second(192),
    "Mixed_7a": (
        Branch((Unit("branch3x3_1", 192, (1, 1)), Unit("branch3x3_2", 320, (3, 3), 2))),
        Branch(
            (
                Unit("branch7x7x3_1", 192, (1, 1)),
                Unit("branch7x7x3_2", 192, (1, 7)),
                Unit("branch7x7x3_3", 192, (7, 1)),
                Unit("branch7x7x3_4", 192, (3, 3), 2),
            )
        ),
        Branch(pool="max"),
    ),
    "Mixed_7b": _third(),
    "Mixed_7c": _third(),
}
"""torchvision's name of a block → its branches, whose results stand side by side."""

LAST = ("Mixed_5d", "Mixed_6e", "Mixed_7c")
"""The last blocks of their resolutions."""


class ConvNorm(nn.Module):
    """A convolution, a batch norm, a relu."""

    config: InceptionConfig
    unit: Unit

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, u = self.config, self.unit
        padding = tuple(k // 2 for k in u.kernel) if u.padded and u.stride == 1 else 0
        x = Conv(u.width // c.divisor, u.kernel, u.stride, padding, name="conv")(x)
        return jax.nn.relu(BatchNorm(c.batch_norm_eps, use_scale=c.norm_scale, name="norm")(x, train))


class Stem(nn.Module):
    """Convolutions and a maximum; `keep` puts the map into `pyramid`."""

    config: InceptionConfig
    units: tuple[Unit, ...]
    keep: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = carry.get("hidden", carry.get("pixel_values"))
        for k, unit in enumerate(self.units):
            x = ConvNorm(self.config, unit, name=f"layer{k}")(x, train)
        return with_map({"hidden": max_pool(x, (3, 3), (2, 2)), **_pyramid(carry)}, self.keep)


class Block(nn.Module):
    """Branches side by side; `keep` puts the map into `pyramid`."""

    config: InceptionConfig
    branches: tuple[Branch, ...]
    keep: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, results = self.config, []
        for branch in self.branches:
            x = carry["hidden"]
            if branch.pool == "max":
                x = max_pool(x, (3, 3), (2, 2))
            elif branch.pool == "mean":
                x = nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=c.count_padding)
            for unit in branch.units:
                x = ConvNorm(c, unit, name=unit.name)(x, train)
            forked = [ConvNorm(c, unit, name=unit.name)(x, train) for unit in branch.fork]
            results += forked or [x]
        return with_map({"hidden": jnp.concatenate(results, axis=-1), **_pyramid(carry)}, self.keep)


def _pyramid(carry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in carry.items() if key == "pyramid"}


class Inception(Tower):
    """`embed0, embed1, block0 … block10`."""

    config: InceptionConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        stem = {f"embed{i}": functools.partial(Stem, c, units, i == 0) for i, units in enumerate(STEM)}
        blocks = enumerate(BLOCKS.items())
        return {**stem, **{f"block{i}": functools.partial(Block, c, b, name in LAST) for i, (name, b) in blocks}}


def finish(config: InceptionConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, H, W, D), pooled (B, D), its mean, and pyramid: the maps of strides 4, 8, 16 and 32."""
    hidden = carry["hidden"]
    return {"hidden": hidden, "pooled": hidden.mean(axis=(1, 2)), "pyramid": carry.get("pyramid", ())}


def _units() -> list[tuple[str, str]]:
    """(torchvision's path, ours) of every convolution, in the order in which Keras makes them."""
    stem = [(unit.name, f"backbone/embed{i}/layer{k}") for i, units in enumerate(STEM) for k, unit in enumerate(units)]
    inner = [
        (f"{theirs}.{unit.name}", f"backbone/block{i}/{unit.name}")
        for i, (theirs, branches) in enumerate(BLOCKS.items())
        for branch in branches
        for unit in (*branch.units, *branch.fork)
    ]
    return [*stem, *inner]


def table(config: InceptionConfig, prefix: str) -> Table:
    """Conv2d_1a_3x3.conv, Mixed_5b.branch1x1.bn …"""
    rows: list[Row] = []
    for theirs, ours in _units():
        conv, norm = f"{prefix}{theirs}.conv", f"{prefix}{theirs}.bn"
        rows.append(row(f"{conv}.weight", f"{ours}/conv/kernel", CONV))
        rows += [row(f"{norm}.weight", f"{ours}/norm/scale", AS_IS)] if config.norm_scale else []
        rows.append(row(f"{norm}.bias", f"{ours}/norm/bias", AS_IS))
        rows.append(row(f"{norm}.running_mean", f"batch_stats:{ours}/norm/mean", AS_IS))
        rows.append(row(f"{norm}.running_var", f"batch_stats:{ours}/norm/var", AS_IS))
    return Table(tuple(rows), extras=(r".*\.num_batches_tracked", r"AuxLogits\..*", r"fc\..*"))


def _keras_order() -> list[int]:
    """The places of `_units()` in the order of `model.layers`: by the distance from a block's end, then as made."""
    order, first = list(range(sum(map(len, STEM)))), sum(map(len, STEM))
    for branches in BLOCKS.values():
        places = []
        for branch in branches:
            # The layer that joins a fork counts too, but less than a convolution with its norm and its relu.
            ends = [len(branch.units) - k + 0.5 * bool(branch.fork) for k in range(len(branch.units))]
            places += [*ends, *(0.75 for _ in branch.fork)] if branch.fork else [end - 1 + 0.5 for end in ends]
        order += [first + i for i in sorted(range(len(places)), key=lambda i: -places[i])]
        first += len(places)
    return order


def keras_layers(config: InceptionConfig) -> list[keras_names.Layer]:
    """conv2d, batch_normalization, conv2d_1 …: a legacy file has the numbers of their making, Keras 3 its own."""
    units = _units()
    layers = []
    for place in _keras_order():
        ours, number = units[place][1], f"_{place}" if place else ""
        layers.append(keras_names.conv(f"conv2d{number}", f"{ours}/conv", bias=False))
        layers.append(keras_names.norm(f"batch_normalization{number}", f"{ours}/norm", scale=config.norm_scale))
    return layers


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Widths, which of the two references it is, and the number of labels, from names and shapes.

    Raises:
      UserError: these are not the weights of such a network.
    """
    theirs = "Conv2d_1a_3x3.conv.weight" in shapes
    first = shapes.get("Conv2d_1a_3x3.conv.weight" if theirs else "layers/conv2d/vars/0", shapes.get("conv2d/vars/0"))
    if first is None or len(first) != 4:
        raise UserError(
            "These are no weights of an Inception v3: Conv2d_1a_3x3.conv.weight, layers/conv2d/vars/0 and "
            "conv2d/vars/0, of which it has one, are not there."
        )
    width, channels = (first[0], first[1]) if theirs else (first[3], first[2])
    prefix = "layers/" if "layers/conv2d/vars/0" in shapes else ""
    scaled = theirs or f"{prefix}batch_normalization/vars/3" in shapes
    entries = {"num_channels": int(channels), "norm_scale": scaled, "count_padding": theirs}
    entries["divisor"] = max(1, 32 // int(width))
    heads = [shapes["fc.weight"][0]] if "fc.weight" in shapes else []
    heads += [shape[1] for shape in keras_names.kernels(shapes, "dense")]
    heads += [shapes[name][1] for name in ("predictions/vars/0",) if name in shapes]
    return {**entries, "num_labels": int(heads[0]), "architectures": [ARCHITECTURE]} if heads else entries


def keras_table(spelling: str, config: InceptionConfig, prefix: str) -> Table:
    """The names of `InceptionV3` in either of Keras' formats."""
    rows = keras_names.keras_rows(keras_layers(config), spelling)
    return Table(tuple(rows), extras=keras_names.EXTRAS)


ARCHITECTURE = "Inception3"
POOLS = {"pools": ("pooled", "mean"), "labels": LABELS}

FAMILY = Family(
    name="inception",
    configure=configure,
    backbone=Inception,
    carry=dict.fromkeys(("pixel_values", "hidden", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    # No size belongs to the model; the smallest that leaves two pixels at the top traces quickly.
    inputs=lambda config: {"pixel_values": jax.ShapeDtypeStruct((1, 107, 107, config.num_channels), jnp.float32)},
    table=table,
    prefixes=("",),
    heads={
        ARCHITECTURE: linear_classifier(ARCHITECTURE, prefix="", theirs="fc", **POOLS),
        **keras_names.classifiers(ARCHITECTURE, keras_layers, **POOLS),
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, ("fsdp", "tensor"))),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={"inception_v3": {}},
    resizes={"num_channels": channels_resize("backbone/embed0/layer0/conv/kernel")},
    infer=infer,
    spellings={name: functools.partial(keras_table, name) for name in keras_names.SPELLINGS},
)
