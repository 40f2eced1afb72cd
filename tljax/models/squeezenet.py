"""SqueezeNet 1.0 and 1.1: fire modules. Iandola et al. 2016, https://arxiv.org/abs/1602.07360.

The weights have torchvision's names (`squeezenet1_0`, `squeezenet1_1`) or those of the Keras files in wide use
(`conv1`, `fire2/squeeze1x1` …). Inputs: torchvision's weights want RGB in [0, 1] with mean 0.485 0.456 0.406 and
deviation 0.229 0.224 0.225; Keras' want BGR from 0 to 255 with the means 103.939 116.779 123.68 taken off.
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
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, CONV, Row, Table, row
from tljax.models import keras_names
from tljax.models.configs import read_config
from tljax.models.formats import describe_labels, label_count, linear_classifier
from tljax.models.heads import STARTS
from tljax.models.inputs import start_pixels
from tljax.models.layers import Conv, max_pool
from tljax.models.resizing import channels_resize
from tljax.models.tower import Tower, with_map

LABELS = 1000
POOLED_BEFORE = {"1.0": (0, 3, 7), "1.1": (0, 2, 4)}
"""The fire modules with a 3×3 maximum before them, from 0."""


@dataclasses.dataclass(frozen=True)
class SqueezeNetConfig:
    """The entries are ours, the references have no config; the defaults are SqueezeNet 1.1.

    Attributes:
      version: "1.0" or "1.1", which says where maxima stand.
      stem_width, stem_kernel: of the first convolution.
      squeeze_widths, expand_widths: channels of the fire modules; each expands to twice `expand_widths`.
      ceil_mode: whether a maximum also takes the windows that stick out at the end (torchvision), or leaves the last
        pixels out (Keras).
      dropout: rate before the classifier's convolution.
      num_channels: of the input.
    """

    version: str = "1.1"
    stem_width: int = 64
    stem_kernel: int = 3
    squeeze_widths: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64)
    expand_widths: tuple[int, ...] = (64, 64, 128, 128, 192, 192, 256, 256)
    ceil_mode: bool = True
    dropout: float = 0.5
    num_channels: int = 3


def configure(entries: Mapping[str, Any]) -> SqueezeNetConfig:
    """Our entries → `SqueezeNetConfig`; raises `UserError` for what is not implemented."""
    accepted = {"version": tuple(POOLED_BEFORE)}
    config = read_config(SqueezeNetConfig, entries, what="SqueezeNet", accepted=accepted)
    if len(config.squeeze_widths) != len(config.expand_widths):
        raise UserError(
            f"squeeze_widths {list(config.squeeze_widths)} and expand_widths {list(config.expand_widths)} must be "
            "equally long, with one entry a fire module."
        )
    return config


class Stem(nn.Module):
    """The first convolution, with stride 2 and no padding."""

    config: SqueezeNetConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        kernel = (c.stem_kernel, c.stem_kernel)
        return {"hidden": jax.nn.relu(Conv(c.stem_width, kernel, 2, use_bias=True, name="conv")(carry["pixel_values"]))}


class Fire(nn.Module):
    """A 1×1 convolution to few channels, then a 1×1 and a 3×3 one side by side; a maximum may come first.

    `keep` puts the map into `pyramid`.
    """

    config: SqueezeNetConfig
    squeeze: int
    expand: int
    pooled: bool
    keep: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = maximum(carry["hidden"], ceil_mode=self.config.ceil_mode) if self.pooled else carry["hidden"]
        x = jax.nn.relu(Conv(self.squeeze, (1, 1), use_bias=True, name="squeeze")(x))
        one = Conv(self.expand, (1, 1), use_bias=True, name="expand1x1")(x)
        three = Conv(self.expand, (3, 3), padding=1, use_bias=True, name="expand3x3")(x)
        return with_map({**carry, "hidden": jax.nn.relu(jnp.concatenate([one, three], axis=-1))}, self.keep)


def maximum(x: jax.Array, *, ceil_mode: bool) -> jax.Array:
    """The maximum over 3×3 windows with stride 2."""
    # An even size leaves one pixel over, for which a window may stick out by one.
    over = [(0, int(ceil_mode and size > 3 and size % 2 == 0)) for size in x.shape[1:3]]
    return max_pool(x, (3, 3), (2, 2), over)


class SqueezeNet(Tower):
    """`embed, block0 …`: the first convolution and the fire modules."""

    config: SqueezeNetConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        chain, pooled = {"embed": functools.partial(Stem, c)}, POOLED_BEFORE[c.version]
        for i, (squeeze, expand) in enumerate(zip(c.squeeze_widths, c.expand_widths, strict=True)):
            last = i + 1 in pooled or i + 1 == len(c.squeeze_widths)
            chain[f"block{i}"] = functools.partial(Fire, c, squeeze, expand, i in pooled, last)
        return chain


class ConvClassifier(nn.Module):
    """A 1×1 convolution with relu, and the mean over the map, as `logits` (B, Y); parameters `out/kernel`, `out/bias`.

    Attributes:
      classes: Y.
      dropout: rate before the convolution.
    """

    classes: int
    dropout: float = 0.5

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = nn.Dropout(self.dropout, deterministic=not train)(outputs["hidden"])
        x = Conv(self.classes, (1, 1), use_bias=True, kernel_init=STARTS["normal"], name="out")(x)
        return {**outputs, "logits": jax.nn.relu(x).mean(axis=(1, 2))}


def finish(config: SqueezeNetConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, H, W, D), pooled (B, D), its mean, and pyramid: the maps of strides 4, 8 and 16."""
    hidden = carry["hidden"]
    return {"hidden": hidden, "pooled": hidden.mean(axis=(1, 2)), "pyramid": carry.get("pyramid", ())}


PARTS = {"squeeze": "squeeze1x1", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
"""The convolutions of a fire module, here and in torchvision → in Keras."""


def _conv_rows(theirs: str, ours: str) -> list[Row]:
    return [row(f"{theirs}.weight", f"{ours}/kernel", CONV), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]


def table(config: SqueezeNetConfig, prefix: str) -> Table:
    """torchvision's `features.N`, which count relus and maxima too."""
    rows = _conv_rows(f"{prefix}features.0", "backbone/embed/conv")
    number = 2
    for i in range(len(config.squeeze_widths)):
        number += i in POOLED_BEFORE[config.version]
        for name in PARTS:
            rows += _conv_rows(f"{prefix}features.{number}.{name}", f"backbone/block{i}/{name}")
        number += 1
    return Table(tuple(rows), extras=(r"classifier\..*",))


def keras_layers(config: SqueezeNetConfig) -> list[keras_names.Layer]:
    """conv1, fire2/squeeze1x1 …"""
    layers = [keras_names.conv("conv1", "backbone/embed/conv")]
    for i in range(len(config.squeeze_widths)):
        layers += [
            keras_names.conv(f"fire{i + 2}/{theirs}", f"backbone/block{i}/{ours}") for ours, theirs in PARTS.items()
        ]
    return layers


def keras_table(spelling: str, config: SqueezeNetConfig, prefix: str) -> Table:
    """The names in either of Keras' formats."""
    return Table(tuple(keras_names.keras_rows(keras_layers(config), spelling)), extras=keras_names.EXTRAS)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Version, widths, rounding and the number of labels, from names and shapes.

    Raises:
      UserError: these are not the weights of such a network.
    """
    kernels = keras_names.kernels(shapes, "conv2d")
    if "features.0.weight" in shapes:
        names, kernels = _torch_kernels(shapes)
        version, ceil_mode = ("1.0" if "features.5.squeeze.weight" in names else "1.1"), True
    elif kernels or "conv1/vars/0" in shapes:
        kernels = kernels or _legacy_kernels(shapes)
        version, ceil_mode = ("1.0" if kernels[0][0] == 7 else "1.1"), False
    stem, fires = (kernels[0], kernels[1:]) if kernels else ((), [])
    # The classifier is one more convolution.
    head = fires.pop() if len(fires) % 3 == 1 else None
    if not fires or len(fires) % 3 or any(len(shape) != 4 for shape in kernels):
        raise UserError(
            "These are no weights of a SqueezeNet: features.0.weight, conv1/vars/0 or layers/conv2d/vars/0 and fire "
            "modules of three convolutions after it are what it has."
        )
    entries = {
        "version": version,
        "stem_width": int(stem[3]),
        "stem_kernel": int(stem[0]),
        "squeeze_widths": [int(shape[3]) for shape in fires[::3]],
        "expand_widths": [int(shape[3]) for shape in fires[1::3]],
        "ceil_mode": ceil_mode,
        "num_channels": int(stem[2]),
    }
    for architecture, labels in ((ARCHITECTURE, head and head[3]), (LINEAR, _linear_labels(shapes))):
        if labels:
            entries.update(num_labels=int(labels), architectures=[architecture])
    return entries


def _torch_kernels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[set[str], list[tuple[int, ...]]]:
    """(names of the kernels, their shapes as (H, W, in, out)), in the order of the network."""
    pattern = r"features\.(\d+)\.(?:(squeeze|expand1x1|expand3x3)\.)?weight"
    found = {}
    for name, shape in shapes.items():
        if m := re.fullmatch(pattern, name):
            found[int(m[1]), list(PARTS).index(m[2]) if m[2] else 0] = (name, shape)
    names, kernels = zip(*(found[place] for place in sorted(found)), strict=True)
    kernels += (shapes["classifier.1.weight"],) if "classifier.1.weight" in shapes else ()
    return set(names), [(*shape[2:], *shape[1::-1]) for shape in kernels]


def _legacy_kernels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    names = ["conv1", *(f"fire{i}/{part}" for i in range(2, len(shapes)) for part in PARTS.values()), "conv10"]
    return [shapes[name] for layer in names if (name := f"{layer}/vars/0") in shapes]


def _linear_labels(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many labels a linear classifier on the mean has, which an export of ours may hold."""
    if "linear.weight" in shapes:
        return shapes["linear.weight"][0]
    found = [*keras_names.kernels(shapes, "dense"), *(shapes[n] for n in ("predictions/vars/0",) if n in shapes)]
    return found[0][1] if found else None


ARCHITECTURE, LINEAR = "SqueezeNet", "SqueezeNetLinear"
"""The published classifier, and a plain linear one on the mean of the map, which is ours."""


def _head_rows(spelling: str, config: SqueezeNetConfig) -> tuple[Row, ...]:
    if not spelling:
        return tuple(_conv_rows("classifier.1", "head/out"))
    layers = [*keras_layers(config), keras_names.conv("conv10", "head/out")]
    return keras_names.part(keras_names.keras_rows(layers, spelling), head=True)


def _conv_heads() -> dict[str, HeadFormat]:
    plain = HeadFormat(
        architecture=ARCHITECTURE,
        head=lambda config, entries: ConvClassifier(label_count(entries, LABELS), dropout=config.dropout),
        matches=lambda head: isinstance(head, ConvClassifier),
        rows=functools.partial(_head_rows, ""),
        prefix="",
        describe=describe_labels,
    )
    return {
        ARCHITECTURE: plain,
        **{
            f"{ARCHITECTURE} ({name})": plain._replace(rows=functools.partial(_head_rows, name), spelling=name)
            for name in keras_names.SPELLINGS
        },
    }


POOLS = {"pools": ("pooled", "mean"), "labels": LABELS}

FAMILY = Family(
    name="squeezenet",
    configure=configure,
    backbone=SqueezeNet,
    carry=dict.fromkeys(("pixel_values", "hidden", "pyramid"), "example"),
    start=start_pixels,
    finish=finish,
    # No size belongs to the model; a small one traces quickly.
    inputs=lambda config: {"pixel_values": jax.ShapeDtypeStruct((1, 64, 64, config.num_channels), jnp.float32)},
    table=table,
    prefixes=("",),
    heads={
        **_conv_heads(),
        LINEAR: linear_classifier(LINEAR, prefix="", theirs="linear", **POOLS),
        **keras_names.classifiers(LINEAR, keras_layers, **POOLS),
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, ("fsdp", "tensor"))),
        (r"backbone/.*/bias", (None,)),
    ),
    variants={
        "squeezenet1_0": {"version": "1.0", "stem_width": 96, "stem_kernel": 7},
        "squeezenet1_1": {},
    },
    resizes={"num_channels": channels_resize("backbone/embed/conv/kernel")},
    infer=infer,
    spellings={name: functools.partial(keras_table, name) for name in keras_names.SPELLINGS},
)
