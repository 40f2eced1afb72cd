"""Darknet's .cfg text → a frozen, hashable description of a network. Redmon 2013–2016, https://pjreddie.com/darknet.

A text is a chain of sections (`[convolutional]`) with options (`filters=32`). Sections are numbered from 0 after
`[net]`, and each reads the one before it unless it says otherwise. Options that only steer Darknet's own training are
passed over; everything else that is not implemented is refused with its line.
"""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest

ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool"}

ACTIVATIONS = ("linear", "leaky", "relu", "logistic", "tanh", "mish", "swish")
"""The activations of a section; `tljax.models.yolo` computes them."""


class Option(NamedTuple):
    """An option that decides what is computed: its kind ("whole", "number", "list", "wholes", "activation"), the value
    where it is absent (None: it must be given), and the only values that are implemented (empty: all)."""

    kind: str
    default: Any = None
    only: tuple[Any, ...] = ()


def _training(names: str) -> frozenset[str]:
    return frozenset(names.split())


OPTIONS: dict[str, dict[str, Option]] = {
    "net": {
        "height": Option("whole"),
        "width": Option("whole"),
        "channels": Option("whole", 3),
        "letter_box": Option("whole", 0, (0,)),
    },
    "convolutional": {
        "filters": Option("whole", 1),
        "size": Option("whole", 1),
        "stride": Option("whole", 1),
        "pad": Option("whole", 0),
        "padding": Option("whole", 0),
        "groups": Option("whole", 1),
        "batch_normalize": Option("whole", 0, (0, 1)),
        "activation": Option("activation", "logistic"),
        "dilation": Option("whole", 1, (1,)),
        "antialiasing": Option("whole", 0, (0,)),
        "binary": Option("whole", 0, (0,)),
        "xnor": Option("whole", 0, (0,)),
    },
    "maxpool": {
        "stride": Option("whole", 1),
        "size": Option("whole", 0),
        "padding": Option("whole", -1),
        "maxpool_depth": Option("whole", 0, (0,)),
        "antialiasing": Option("whole", 0, (0,)),
    },
    "route": {"layers": Option("wholes"), "groups": Option("whole", 1), "group_id": Option("whole", 0)},
    "shortcut": {
        "from": Option("whole"),
        "activation": Option("activation", "linear"),
        "weights_type": Option("text", "none", ("none",)),
    },
    "upsample": {"stride": Option("whole", 2), "scale": Option("number", 1.0, (1.0,))},
    "dropout": {"probability": Option("number", 0.5), "dropblock": Option("whole", 0, (0,))},
    "yolo": {
        "classes": Option("whole", 20),
        "num": Option("whole", 1),
        "mask": Option("wholes", ()),
        "anchors": Option("list"),
        "scale_x_y": Option("number", 1.0),
        "new_coords": Option("whole", 0, (0, 1)),
    },
}
"""Section → what it may say."""

TRAINING = {
    "net": _training(
        "batch subdivisions momentum decay angle saturation exposure hue learning_rate burn_in max_batches policy "
        "steps scales aspect min_crop max_crop min_ratio max_ratio flip blur gaussian_noise mosaic mosaic_bound mixup "
        "cutmix adam b1 b2 eps power gamma step scale seq_scales learning_rate_min sgdr_cycle sgdr_mult "
        "batches_per_cycle batches_cycle_mult time_steps track augment_speed sequential_subdivisions try_fix_nan "
        "loss_scale dynamic_minibatch optimized_memory workspace_size_limit_mb max_chart_loss show_receptive_field "
        "label_smooth_eps resize_step inputs center ema_alpha weights_reject_freq badlabels_rejection_percentage "
        "num_sigmas_reject_badlabels equidistant_point adversarial_lr max_delta"
    ),
    "convolutional": _training("stopbackward burnin_update train_only_bn learning_rate_scale learning_rate flipped"),
    "maxpool": _training("stopbackward"),
    "route": _training("stopbackward"),
    "shortcut": _training("stopbackward"),
    "upsample": _training(""),
    "dropout": _training(""),
    "yolo": _training(
        "jitter resize ignore_thresh truth_thresh iou_thresh random max iou_loss iou_thresh_kind iou_normalizer "
        "obj_normalizer cls_normalizer delta_normalizer uc_normalizer nms_kind beta_nms focal_loss objectness_smooth "
        "label_smooth_eps max_delta counters_per_class show_details track_history_size sim_thresh"
    ),
}
"""Section → options of Darknet's own training and suppression, which the network does not depend on."""


class Section(NamedTuple):
    """One section after `[net]`.

    Attributes:
      number: Darknet's.
      kind: "convolutional", "route" …
      line: in the text, from 1.
      options: (name, value) of everything in `OPTIONS`, the absent ones at their defaults.
      reads: numbers of the sections that it reads; −1 is the image.
      shape: (H, W, C) of its result at the size that `[net]` states.
      reduction: pixels of the image for one of its own.
    """

    number: int
    kind: str
    line: int
    options: tuple[tuple[str, Any], ...]
    reads: tuple[int, ...]
    shape: tuple[int, int, int]
    reduction: Fraction

    def get(self, name: str) -> Any:
        """The value of an option."""
        return dict(self.options)[name]


class Description(NamedTuple):
    """A network.

    Attributes:
      size: (height, width) of the input.
      channels: of the input.
      sections: in order.
      multiple: height and width of any input are multiples of it: 32 for most detectors.
    """

    size: tuple[int, int]
    channels: int
    sections: tuple[Section, ...]
    multiple: int


class _Raw(NamedTuple):
    """A section as it is written: options → (value, line)."""

    kind: str
    line: int
    options: dict[str, tuple[str, int]]


@functools.lru_cache(maxsize=64)
def parse(text: str, where: str = "the cfg") -> Description:
    """The description of a .cfg text.

    Args:
      text: the whole of it.
      where: its file, for messages.

    Raises:
      UserError: every unknown section or option, wrong value, reference to a section that does not exist, and wherever
        shapes do not fit, each with its line.
    """
    title = f"{where} describes no network that can be built:"
    faults: list[str] = []
    raws = read_sections(text, faults)
    kinds = [raw.kind for raw in raws]
    if not kinds or kinds[0] != "net" or "net" in kinds[1:]:
        faults.append(f"it must begin with one [net], and its sections are: {', '.join(kinds[:6]) or 'none'} …")
    elif len(kinds) == 1:
        faults.append("there is no section after [net].")
    read = [_options(raw, faults) for raw in raws]
    raise_faults(title, faults)
    net = read[0]
    if min(net["height"], net["width"], net["channels"]) < 1:
        raise_faults(title, [f"line {raws[0].line}: height, width and channels must be at least 1."])
    sections: list[Section] = []
    for number, (raw, options) in enumerate(zip(raws[1:], read[1:], strict=True)):
        image = (net["height"], net["width"], net["channels"])
        try:
            sections.append(_section(number, raw, options, sections, image))
        except _Misfit as error:
            # What follows would only repeat this fault.
            raise_faults(title, [f"line {raw.line}: [{raw.kind}] {error}"])
    multiple = int(max(section.reduction for section in sections))
    for name in ("height", "width"):
        if net[name] % multiple:
            line = raws[0].options[name][1]
            faults.append(f"line {line}: {name} is {net[name]}; this network needs a multiple of {multiple}.")
    raise_faults(title, faults)
    return Description((net["height"], net["width"]), net["channels"], tuple(sections), multiple)


def read_sections(text: str, faults: list[str]) -> list[_Raw]:
    """The sections as they are written, with their lines; faults of the writing are appended to `faults`."""
    raws: list[_Raw] = []
    for line, content in enumerate(text.split("\n"), 1):
        # Darknet strikes out all white space, inside of values too.
        content = "".join(content.partition("#")[0].split())
        if not content or content.startswith(";"):
            continue
        if content.startswith("["):
            kind = content.strip("[]").lower()
            kind = ALIASES.get(kind, kind)
            if kind not in OPTIONS:
                faults.append(f"line {line}: the section [{kind}] is not implemented. {suggest(kind, OPTIONS)}")
            raws.append(_Raw(kind, line, {}))
            continue
        name, equals, value = content.partition("=")
        if not equals or not raws:
            why = "is no `name=value`" if raws else "stands before the first section"
            faults.append(f"line {line}: {content!r} {why}.")
        elif name in raws[-1].options:
            faults.append(f"line {line}: {name} was given on line {raws[-1].options[name][1]} already.")
        else:
            raws[-1].options[name] = (value, line)
    return raws


def _options(raw: _Raw, faults: list[str]) -> dict[str, Any]:
    """The options that decide what is computed, read and checked one by one."""
    known = OPTIONS.get(raw.kind)
    if known is None:
        return {}
    values = {name: option.default for name, option in known.items()}
    for name, (text, line) in raw.options.items():
        if name.lower() in TRAINING[raw.kind]:
            continue
        if name not in known:
            faults.append(f"line {line}: [{raw.kind}] has no option {name!r}. {suggest(name, known)}")
            continue
        option = known[name]
        try:
            values[name] = READERS[option.kind](text)
        except ValueError:
            faults.append(f"line {line}: {name} is {text!r}, which is no {KINDS[option.kind]}.")
            continue
        if option.kind == "activation" and values[name] not in ACTIVATIONS:
            faults.append(f"line {line}: the activation {text!r} is not implemented. {suggest(text, ACTIVATIONS)}")
        if option.only and values[name] not in option.only:
            accepted = ", ".join(map(str, option.only))
            faults.append(f"line {line}: {name} is {text}, which is not implemented. Accepted: {accepted}.")
    missing = [name for name, option in known.items() if values[name] is None and name not in raw.options]
    faults += [f"line {raw.line}: [{raw.kind}] needs {name}." for name in missing]
    return values


READERS: dict[str, Callable[[str], Any]] = {
    "whole": int,
    "number": float,
    "text": str,
    "activation": str,
    "wholes": lambda text: tuple(int(part) for part in text.strip(",").split(",")),
    "list": lambda text: tuple(float(part) for part in text.strip(",").split(",")),
}
KINDS = {"whole": "whole number", "number": "number", "wholes": "list of whole numbers", "list": "list of numbers"}


class _Misfit(Exception):
    """A section that does not fit those before it."""


def _section(
    number: int, raw: _Raw, options: dict[str, Any], before: Sequence[Section], image: tuple[int, int, int]
) -> Section:
    reads = _reads(number, raw.kind, options)
    for read in reads:
        # Only the first section may read the image, which counts as number −1.
        if not min(0, number - 1) <= read < number:
            raise _Misfit(f"reads section {read}; it is number {number} itself, and may read 0 to {number - 1}.")
        if read >= 0 and "yolo" in (before[read].kind, *(s.kind for s in before[read + 1 : read + 2])):
            raise _Misfit(f"reads section {read} (line {before[read].line}), whose result is boxes and no map.")
    shapes = [image if read < 0 else before[read].shape for read in reads]
    reduction = Fraction(1) if reads[0] < 0 else before[reads[0]].reduction
    shape, reduction = SHAPES[raw.kind](options, shapes, reduction)
    if min(shape) < 1:
        raise _Misfit(f"would make a map of {shape} (height, width, channels) of one of {shapes[0]}.")
    if raw.kind == "yolo":
        _check_detector(number, options, before)
    return Section(number, raw.kind, raw.line, tuple(options.items()), reads, shape, reduction)


def _reads(number: int, kind: str, options: dict[str, Any]) -> tuple[int, ...]:
    if kind == "route":
        return tuple(layer if layer >= 0 else number + layer for layer in options["layers"])
    if kind == "shortcut":
        other = options["from"]
        return (number - 1, other if other >= 0 else number + other)
    return (number - 1,)


def _check_detector(number: int, options: dict[str, Any], before: Sequence[Section]) -> None:
    if number == 0 or before[-1].kind != "convolutional":
        raise _Misfit("must follow a [convolutional].")
    if before[-1].get("batch_normalize") or before[-1].get("groups") != 1:
        raise _Misfit(f"must follow a convolution without batch_normalize and groups (line {before[-1].line}).")
    if number < 2:
        raise _Misfit("has no backbone: there must be a section before its convolution.")
    wanted = "logistic" if options["new_coords"] else "linear"
    if before[-1].get("activation") != wanted:
        raise _Misfit(
            f"has new_coords={options['new_coords']}, so that the convolution on line {before[-1].line} needs "
            f"activation={wanted}."
        )


def _convolved(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    height, width, channels = shapes[0]
    size, stride, groups = options["size"], options["stride"], options["groups"]
    if min(size, stride, groups, options["filters"]) < 1:
        raise _Misfit("needs size, stride, groups and filters from 1.")
    if channels % groups or options["filters"] % groups:
        raise _Misfit(f"has groups={groups}, which must divide its {channels} channels and its filters.")
    padding = padding_of(options)
    out = [(n + 2 * padding - size) // stride + 1 for n in (height, width)]
    return (*out, options["filters"]), reduction * stride


def padding_of(options: dict[str, Any]) -> int:
    """The pixels that a convolution adds on each side."""
    return options["size"] // 2 if options["pad"] else options["padding"]


def pool_of(options: dict[str, Any]) -> tuple[int, int, int]:
    """(size, pixels added before, pixels added after) of a maximum; Darknet adds size − 1, the odd one after."""
    size = options["size"] or options["stride"]
    padding = options["padding"] if options["padding"] >= 0 else size - 1
    return size, padding // 2, padding - padding // 2


def _pooled(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    height, width, channels = shapes[0]
    if options["stride"] < 1 or options["size"] < 0:
        raise _Misfit("needs size and stride from 1.")
    size, before, after = pool_of(options)
    if before >= size or after >= size:
        raise _Misfit(f"pads by {before + after} and would take the maximum of nothing.")
    out = [(n + before + after - size) // options["stride"] + 1 for n in (height, width)]
    return (*out, channels), reduction * options["stride"]


def _routed(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    groups, group = options["groups"], options["group_id"]
    if len({shape[:2] for shape in shapes}) > 1:
        raise _Misfit(f"joins maps of different sizes (height, width, channels): {shapes}.")
    if groups < 1 or not 0 <= group < groups or any(shape[2] % groups for shape in shapes):
        raise _Misfit(f"takes group {group} of {groups} of the channels {[shape[2] for shape in shapes]}.")
    return (*shapes[0][:2], sum(shape[2] for shape in shapes) // groups), reduction


def _added(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    if shapes[0] != shapes[1]:
        raise _Misfit(f"adds maps of different shapes (height, width, channels): {shapes[0]} and {shapes[1]}.")
    return shapes[0], reduction


def _upsampled(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    height, width, channels = shapes[0]
    if options["stride"] < 1:
        raise _Misfit("needs a stride from 1.")
    return (height * options["stride"], width * options["stride"], channels), reduction / options["stride"]


def _dropped(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    if not 0 <= options["probability"] < 1:
        raise _Misfit("needs a probability from 0 to below 1.")
    return shapes[0], reduction


def _detected(options: dict[str, Any], shapes: list[tuple], reduction: Fraction) -> tuple[tuple, Fraction]:
    if len(options["anchors"]) != 2 * options["num"]:
        raise _Misfit(f"has num={options['num']} and {len(options['anchors'])} numbers in anchors; each anchor is two.")
    mask = options["mask"] or tuple(range(options["num"]))
    if any(not 0 <= i < options["num"] for i in mask):
        raise _Misfit(f"has the mask {mask}, and its anchors are 0 to {options['num'] - 1}.")
    if options["classes"] < 1 or min(options["anchors"]) <= 0:
        raise _Misfit("needs at least one class and anchors greater than 0.")
    filters = len(mask) * (5 + options["classes"])
    if shapes[0][2] != filters:
        raise _Misfit(
            f"has {len(mask)} anchors and {options['classes']} classes, so that the convolution before it needs "
            f"filters={filters}; it has {shapes[0][2]}."
        )
    return shapes[0], reduction


SHAPES: dict[str, Callable[[dict[str, Any], list[tuple], Fraction], tuple[tuple, Fraction]]] = {
    "convolutional": _convolved,
    "maxpool": _pooled,
    "route": _routed,
    "shortcut": _added,
    "upsample": _upsampled,
    "dropout": _dropped,
    "yolo": _detected,
}
"""Section → (options, shapes that it reads, their reduction) → (its shape, its reduction)."""
