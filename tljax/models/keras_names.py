"""Keras' names of weights, made from the layers of a model in the order of `model.layers`.

Keras 3 counts layers by class; the legacy format names them freely. Keras stores kernels as we do: (H, W, in, out) and
(in, out).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.types import HeadFormat
from tljax.base.weights import AS_IS, Row, row
from tljax.models.formats import linear_classifier

KERAS, LEGACY = SPELLINGS = ("keras", "keras_legacy")
"""`.weights.h5` of Keras 3; `.h5` of Keras 1 and 2."""

EXTRAS = (r"optimizer/.*", r"optimizer_vars/.*", r".*/seed_generator/.*")
"""What `.weights.h5` may hold besides, and keeps for export."""


class Layer(NamedTuple):
    """A layer with weights.

    Attributes:
      kind: its class in snake case.
      name: in a legacy file.
      ours: our leaves, in the order of its weights.
    """

    kind: str
    name: str
    ours: tuple[str, ...]


def conv(name: str, ours: str, *, bias: bool = True) -> Layer:
    """A `Conv2D`."""
    return Layer("conv2d", name, (f"{ours}/kernel", f"{ours}/bias") if bias else (f"{ours}/kernel",))


def dense(name: str, ours: str) -> Layer:
    """A `Dense`."""
    return Layer("dense", name, (f"{ours}/kernel", f"{ours}/bias"))


def norm(name: str, ours: str, *, scale: bool = True) -> Layer:
    """A `BatchNormalization`, with or without gamma."""
    learnt = (f"{ours}/scale", f"{ours}/bias") if scale else (f"{ours}/bias",)
    return Layer("batch_normalization", name, (*learnt, f"batch_stats:{ours}/mean", f"batch_stats:{ours}/var"))


def keras_rows(layers: Sequence[Layer], spelling: str) -> list[Row]:
    """The rows of all weights of `layers`, as `tljax.checkpoints.keras_format` names tensors."""
    counts: dict[str, int] = {}
    rows = []
    for layer in layers:
        count = counts.get(layer.kind, 0)
        counts[layer.kind] = count + 1
        counted = f"layers/{layer.kind}_{count}" if count else f"layers/{layer.kind}"
        theirs = counted if spelling == KERAS else layer.name
        rows += [row(f"{theirs}/vars/{number}", path, AS_IS) for number, path in enumerate(layer.ours)]
    return rows


def part(rows: Sequence[Row], *, head: bool) -> tuple[Row, ...]:
    """The rows of the head, or those of the backbone."""
    return tuple(entry for entry in rows if entry.ours[0].startswith("head/") == head)


def classifiers(architecture: str, layers: Callable[[Any], Sequence[Layer]], **options: Any) -> dict[str, HeadFormat]:
    """A `Dense` called `predictions` on the pooled vector, in both formats.

    Args:
      architecture: the class in config.json.
      layers: config → all layers of the backbone.
      options: of `linear_classifier`.
    """

    def rows(spelling: str, config: Any) -> tuple[Row, ...]:
        return part(keras_rows([*layers(config), dense("predictions", "head/out")], spelling), head=True)

    plain = linear_classifier(architecture, prefix="", theirs="", **options)
    return {
        f"{architecture} ({spelling})": plain._replace(rows=functools.partial(rows, spelling), spelling=spelling)
        for spelling in SPELLINGS
    }


def kernels(shapes: Mapping[str, tuple[int, ...]], kind: str) -> list[tuple[int, ...]]:
    """The shapes of the first weights of all layers of a kind, in Keras 3's order."""
    found = {}
    for name, shape in shapes.items():
        if m := re.fullmatch(rf"layers/{kind}(?:_(\d+))?/vars/0", name):
            found[int(m[1] or 0)] = tuple(shape)
    return [found[number] for number in sorted(found)]
