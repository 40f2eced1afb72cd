"""Detectors that a Darknet .cfg describes: YOLO in its third, fourth and many lighter forms.

Redmon and Farhadi 2018, arXiv:1804.02767; Bochkovskiy, Wang and Liao 2020, arXiv:2004.10934. The text is the config:
any network of the sections in `tljax.models.darknet_cfg` can be read, and only one is built in.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, CONV, Row, Table, row
from tljax.models.boxes import from_centers
from tljax.models.configs import read_config
from tljax.models.darknet_cfg import Description, Section, padding_of, parse, pool_of
from tljax.models.formats import describe_labels
from tljax.models.inputs import start_pixels
from tljax.models.layers import BatchNorm, Conv, dropout
from tljax.models.tower import Tower
from tljax.models.yolo_variants import YOLOV3_TINY

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "leaky": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "relu": jax.nn.relu,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "swish": jax.nn.silu,
}
"""Darknet's names of activations."""

EPSILON = 1e-6
"""Of the batch norms, as OpenCV has it; Darknet's forks differ: 1e-6 beside the root, 1e-5 in it."""


@dataclasses.dataclass(frozen=True)
class YoloConfig:
    """The whole description is the text of a .cfg file.

    Attributes:
      cfg: the text, verbatim.
    """

    cfg: str = YOLOV3_TINY

    @property
    def description(self) -> Description:
        """What the text says."""
        return parse(self.cfg)

    @property
    def num_channels(self) -> int:
        """Of the input."""
        return self.description.channels


def configure(entries: Mapping[str, Any]) -> YoloConfig:
    """{"cfg": text} → `YoloConfig`; raises `UserError` for a text that cannot be built, with its lines."""
    config = read_config(YoloConfig, entries, what="Darknet detector")
    counts = {d.yolo.line: d.yolo.get("classes") for d in detectors(config)}
    if not counts:
        raise UserError("The cfg has no [yolo] section, so that it describes no detector.")
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} on line {line}" for line, count in counts.items())
        raise UserError(f"The [yolo] sections of the cfg must have one number of classes; they have {said}.")
    return config


class Detector(NamedTuple):
    """A `[yolo]` section, the convolution before it, and the section that this one reads."""

    source: Section
    conv: Section
    yolo: Section

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """(width, height) of its own anchors, in pixels of the input."""
        flat = self.yolo.get("anchors")
        mask = self.yolo.get("mask") or range(self.yolo.get("num"))
        return tuple((flat[2 * i], flat[2 * i + 1]) for i in mask)


class Part(NamedTuple):
    """A stage: its name, its sections, and whose results later stages or the head read."""

    name: str
    sections: tuple[Section, ...]
    keep: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def detectors(config: YoloConfig) -> tuple[Detector, ...]:
    """The detectors in the order of the text: coarse maps first in most networks."""
    sections = config.description.sections
    found = [(sections[s.number - 1], s) for s in sections if s.kind == "yolo"]
    return tuple(Detector(sections[conv.reads[0]], conv, yolo) for conv, yolo in found)


@functools.lru_cache(maxsize=64)
def parts(config: YoloConfig) -> tuple[Part, ...]:
    """The stages: each convolution with the sections after it that have no weights, up to the next convolution.

    What follows a detector begins a stage of its own. A stage is called by the number of its convolution.
    """
    made = detectors(config)
    ours = {number for d in made for number in (d.conv.number, d.yolo.number)}
    groups: list[list[Section]] = []
    for section in config.description.sections:
        if section.number in ours:
            continue
        full = groups and any(s.kind == "convolutional" for s in groups[-1])
        follows_detector = section.number - 1 in ours
        if not groups or follows_detector or (section.kind == "convolutional" and full):
            groups.append([])
        groups[-1].append(section)
    wanted = {d.source.number for d in made}
    found = []
    for group in reversed(groups):
        numbers = {s.number for s in group}
        found.append((group, tuple(sorted(wanted))))
        # The result just before comes as `hidden`.
        reads = {read for s in group for read in s.reads} - {group[0].number - 1}
        wanted = (wanted | reads) - numbers
    return tuple(
        Part(_stage_name(group), tuple(group), tuple(n for n in keep if n <= group[-1].number))
        for group, keep in reversed(found)
    )


def _stage_name(group: Sequence[Section]) -> str:
    named = [s.number for s in group if s.kind == "convolutional"] or [group[0].number]
    return f"layer{named[0]}"


def max_pool(x: jax.Array, section: Section) -> jax.Array:
    """The maximum over windows; (B, H, W, C)."""
    options = dict(section.options)
    size, before, after = pool_of(options)
    padding = ((0, 0), (before, after), (before, after), (0, 0))
    window, strides = (1, size, size, 1), (1, options["stride"], options["stride"], 1)
    # A constant: an array would hide that this is a maximum, which alone has a gradient.
    return jax.lax.reduce_window(x, np.array(-np.inf, x.dtype), jax.lax.max, window, strides, padding)


def route(maps: Sequence[jax.Array], section: Section) -> jax.Array:
    """One group of the channels of each map, joined."""
    groups, group = section.get("groups"), section.get("group_id")
    pieces = [x[..., group * (c := x.shape[-1] // groups) : (group + 1) * c] for x in maps]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


def upsample(x: jax.Array, stride: int) -> jax.Array:
    """Every pixel `stride` times in both directions."""
    return jnp.repeat(jnp.repeat(x, stride, axis=1), stride, axis=2)


class Stage(nn.Module):
    """The sections of one `Part`. Results that are read later travel in the carry's `kept`, by section."""

    part: Part

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        part, kept = self.part, dict(carry.get("kept", {}))
        results = {int(name.removeprefix("layer")): x for name, x in kept.items()}
        first = part.sections[0].number
        results.setdefault(first - 1, carry["pixel_values"] if first == 0 else carry["hidden"])
        for section in part.sections:
            maps = [results[read] for read in section.reads]
            results[section.number] = self._run(section, maps, train)
        kept = {f"layer{number}": results[number] for number in part.keep}
        return {"hidden": results[part.sections[-1].number], "kept": kept}

    def _run(self, section: Section, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        if section.kind == "convolutional":
            return self._convolve(section, maps[0], train)
        if section.kind == "maxpool":
            return max_pool(maps[0], section)
        if section.kind == "route":
            return route(maps, section)
        if section.kind == "shortcut":
            return ACTIVATIONS[section.get("activation")](maps[0] + maps[1])
        if section.kind == "upsample":
            return upsample(maps[0], section.get("stride"))
        return dropout(self, maps[0], section.get("probability"), train)

    def _convolve(self, section: Section, x: jax.Array, train: bool) -> jax.Array:
        options = dict(section.options)
        size, norm = options["size"], bool(options["batch_normalize"])
        x = Conv(
            options["filters"],
            (size, size),
            options["stride"],
            padding_of(options),
            options["groups"],
            use_bias=not norm,
            name="conv",
        )(x)
        x = BatchNorm(EPSILON, name="norm")(x, train) if norm else x
        return ACTIVATIONS[options["activation"]](x)


class Yolo(Tower):
    """`layer0, layer1 …`, without the detectors: those are the head."""

    config: YoloConfig

    def chain(self) -> dict[str, Any]:
        return {part.name: functools.partial(Stage, part) for part in parts(self.config)}


class YoloHead(nn.Module):
    """The convolutions in front of the `[yolo]` sections, as `raw`: a tuple of (B, H, W, A, 5 + Y), not yet decoded.

    The last axis is x, y, width, height, objectness and the classes. Parameters: `out0/kernel`, `out0/bias`, `out1/…`.

    Attributes:
      classes: Y.
      anchors: for each map of `pyramid`, its A anchors as (width, height) in pixels of the input.
      sizes: of the kernels.
      scale_x_y: of each map; how far centers may leave their cell (Bochkovskiy et al. 2020).
      new_coords: of each map; whether sizes are squares of sigmoids and not exponentials (Wang et al. 2021).
      prior: the probability of an object that a new head starts with (Lin et al. 2017, arXiv:1708.02002): most places
        hold none, and would drown the rest in the first steps.
    """

    classes: int
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    sizes: tuple[int, ...]
    scale_x_y: tuple[float, ...]
    new_coords: tuple[bool, ...]
    prior: float = 0.01

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        raw = []
        for i, (x, anchors, size) in enumerate(zip(outputs["pyramid"], self.anchors, self.sizes, strict=True)):
            out = _Out(self.classes, len(anchors), size, self.prior, name=f"out{i}")
            raw.append(out(x).reshape(*x.shape[:3], len(anchors), 5 + self.classes))
        return {**outputs, "raw": tuple(raw)}


class _Out(nn.Module):
    """A convolution that keeps the size of its map."""

    classes: int
    anchors: int
    size: int
    prior: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        depth = self.anchors * (5 + self.classes)
        kernel = self.param("kernel", nn.initializers.normal(0.01), (self.size, self.size, x.shape[-1], depth))
        bias = self.param("bias", self._bias, (depth,))
        edge = (self.size // 2, self.size // 2)
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = x.astype(kernel.dtype)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), (edge, edge), dimension_numbers=dimensions) + bias

    def _bias(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        start = jnp.zeros((self.anchors, 5 + self.classes)).at[:, 4].set(jnp.log(self.prior / (1 - self.prior)))
        return start.reshape(shape)


def make_head(config: YoloConfig, classes: int | None = None) -> YoloHead:
    """The head that the cfg describes; with `classes`, one for that many classes at the same places and anchors."""
    found = detectors(config)
    return YoloHead(
        classes=classes or found[0].yolo.get("classes"),
        anchors=tuple(d.anchors for d in found),
        sizes=tuple(d.conv.get("size") for d in found),
        scale_x_y=tuple(d.yolo.get("scale_x_y") for d in found),
        new_coords=tuple(bool(d.yolo.get("new_coords")) for d in found),
    )


def decode(
    raw: Sequence[jax.Array],
    anchors: Sequence[Sequence[tuple[float, float]]],
    image_size: tuple[int, int],
    *,
    scale_x_y: Sequence[float] | None = None,
    new_coords: Sequence[bool] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Boxes and scores from what a `YoloHead` gives. Pure, with static shapes; in float32.

    Args:
      raw: for each map (B, H, W, A, 5 + Y).
      anchors: for each map A pairs (width, height) in pixels of the input.
      image_size: (height, width) of the input.
      scale_x_y, new_coords: as those of the head; None is 1 and False for all.

    Returns:
      boxes (B, N, 4), x0 y0 x1 y1 as shares of the input's width and height (they may reach beyond 0 and 1), and scores
      (B, N, Y), objectness times class probability; N counts maps, rows, columns and anchors, in this order.
    """
    scales = scale_x_y or (1.0,) * len(raw)
    squares = new_coords or (False,) * len(raw)
    boxes, scores = [], []
    for x, own, scale, square in zip(raw, anchors, scales, squares, strict=True):
        batch, height, width = x.shape[:3]
        x = x.astype(jnp.float32)
        corner = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1)[:, :, None]
        center = jax.nn.sigmoid(x[..., :2]) * scale - (scale - 1) / 2 + corner
        factor = jnp.square(2 * jax.nn.sigmoid(x[..., 2:4])) if square else jnp.exp(x[..., 2:4])
        size = factor * jnp.array(own, jnp.float32) / jnp.array(image_size[::-1], jnp.float32)
        found = jnp.concatenate([center / jnp.array([width, height]), size], axis=-1)
        boxes.append(from_centers(found).reshape(batch, -1, 4))
        score = jax.nn.sigmoid(x[..., 4:5]) * jax.nn.sigmoid(x[..., 5:])
        scores.append(score.reshape(batch, -1, score.shape[-1]))
    return jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1)


def start(config: YoloConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry: `pixel_values` (B, H, W, C), RGB in [0, 1]; raises `UserError` for sizes that do not fit."""
    carry = start_pixels(config, inputs)
    multiple = config.description.multiple
    names = ("height", "width")
    sizes = dict(zip(names, carry["pixel_values"].shape[1:3], strict=True))
    raise_faults(
        "pixel_values cannot be read by this network:",
        [
            f"the {name} is {size}, and must be a multiple of {multiple}, such as {-(-size // multiple) * multiple}."
            for name, size in sizes.items()
            if size % multiple or not size
        ],
    )
    return carry


def finish(config: YoloConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """`pyramid`, the maps that the head reads; `hidden`, the coarsest of them; no `pooled`."""
    kept = carry.get("kept", {})
    sources = [d.source for d in detectors(config)]
    deepest = max(sources, key=lambda s: s.reduction)
    return {
        "hidden": kept.get(f"layer{deepest.number}", carry.get("hidden")),
        "pooled": None,
        "pyramid": tuple(kept[f"layer{s.number}"] for s in sources if f"layer{s.number}" in kept),
    }


def table(config: YoloConfig, prefix: str) -> Table:
    """layer0.biases, layer0.scales, layer0.means, layer0.variances, layer0.weights …, in the file's order."""
    ours = {d.conv.number for d in detectors(config)}
    rows: list[Row] = []
    for section in config.description.sections:
        if section.kind != "convolutional" or section.number in ours:
            continue
        theirs, stage = f"{prefix}layer{section.number}", f"backbone/layer{section.number}"
        if section.get("batch_normalize"):
            rows += [
                row(f"{theirs}.biases", f"{stage}/norm/bias", AS_IS),
                row(f"{theirs}.scales", f"{stage}/norm/scale", AS_IS),
                row(f"{theirs}.means", f"batch_stats:{stage}/norm/mean", AS_IS),
                row(f"{theirs}.variances", f"batch_stats:{stage}/norm/var", AS_IS),
            ]
        else:
            rows.append(row(f"{theirs}.biases", f"{stage}/conv/bias", AS_IS))
        rows.append(row(f"{theirs}.weights", f"{stage}/conv/kernel", CONV))
    numbers = "|".join(map(str, sorted(ours)))
    return Table(rows=tuple(rows), extras=(rf"layer({numbers})\.(biases|weights)", "header"))


def head_rows(config: YoloConfig) -> tuple[Row, ...]:
    """The convolutions in front of the `[yolo]` sections."""
    found = []
    for i, d in enumerate(detectors(config)):
        found.append(row(f"layer{d.conv.number}.biases", f"head/out{i}/bias", AS_IS))
        found.append(row(f"layer{d.conv.number}.weights", f"head/out{i}/kernel", CONV))
    return tuple(found)


ARCHITECTURE = "DarknetForObjectDetection"
"""Ours: Darknet has no classes."""

FAMILY = Family(
    name="yolo",
    configure=configure,
    backbone=Yolo,
    carry=dict.fromkeys(("pixel_values", "hidden", "kept"), "example"),
    start=start,
    finish=finish,
    inputs=lambda config: {
        "pixel_values": jax.ShapeDtypeStruct((1, *config.description.size, config.num_channels), jnp.float32)
    },
    table=table,
    prefixes=("",),
    heads={
        ARCHITECTURE: HeadFormat(
            architecture=ARCHITECTURE,
            head=lambda config, entries: make_head(config),
            matches=lambda head: isinstance(head, YoloHead),
            rows=head_rows,
            prefix="",
            describe=describe_labels,
        )
    },
    own_pool="mean",
    sharding=(
        (r"backbone/.*/kernel", (None, None, None, "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={"yolov3-tiny": {"cfg": YOLOV3_TINY}},
)
