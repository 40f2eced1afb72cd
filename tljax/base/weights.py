"""Weight tables: a bijection between a checkpoint's tensors and the leaves of our tree.

A `Layout` is a pair of inverse functions; a `Row` applies one to some of their tensors and some of our leaves; a
`Table` holds all rows of a family. Import and export are the same table, read in two directions.

Layouts are written against plain NumPy: transposes are views, so nothing is copied before it must be. They keep
dtypes and bits.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Layout(NamedTuple):
    """Two inverse functions between the arrays of one row: `ours(*theirs) -> ours`, `theirs(*ours) -> theirs`."""

    name: str
    ours: Callable[..., Arrays]
    theirs: Callable[..., Arrays]


class Row(NamedTuple):
    """Their tensor names, our leaf paths (`backbone/block0/query/kernel`), and the layout between the two."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: Layout


class Table(NamedTuple):
    """All that is known about the names of one kind of checkpoint.

    Attributes:
      rows: every tensor of theirs that is a leaf of ours.
      aliases: their name → their name. The first is a copy of the second (tied weights); it may be absent, and
        must be equal where it is present.
      extras: regular expressions of tensors that we do not use and keep verbatim for export (counters, buffers,
        heads that nobody asked for).
      renames: (regular expression, replacement) applied to source names first, for historical spellings.
    """

    rows: tuple[Row, ...]
    aliases: Mapping[str, str] = {}
    extras: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()


def row(theirs: str | tuple[str, ...], ours: str | tuple[str, ...], layout: Layout) -> Row:
    """A `Row` from names or tuples of names."""
    return Row(
        (theirs,) if isinstance(theirs, str) else tuple(theirs),
        (ours,) if isinstance(ours, str) else tuple(ours),
        layout,
    )


def _permutation(name: str, *axes: int) -> Layout:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Layout(name, lambda x: (x.transpose(axes),), lambda x: (x.transpose(inverse),))


AS_IS = Layout("as-is", lambda x: (x,), lambda x: (x,))
"""Biases, scales, embeddings, statistics."""

LINEAR = _permutation("linear", 1, 0)
"""torch `Linear` (out, in) ↔ kernel (in, out)."""

CONV = _permutation("conv", 2, 3, 1, 0)
"""torch `Conv2d` (out, in / groups, H, W) ↔ kernel (H, W, in / groups, out); grouped convolutions too."""

CONV1D = _permutation("conv1d", 2, 1, 0)
"""torch `Conv1d` (out, in / groups, T) ↔ kernel (T, in / groups, out)."""


def conv_depthwise(multiplier: int = 1) -> Layout:
    """A depthwise kernel kept as channels × multiplier: torch (C·M, 1, H, W) ↔ (H, W, C, M)."""

    def ours(x: np.ndarray) -> Arrays:
        channels = x.shape[0] // multiplier
        return (x.reshape(channels, multiplier, *x.shape[2:]).transpose(2, 3, 0, 1),)

    def theirs(x: np.ndarray) -> Arrays:
        h, w, channels, m = x.shape
        return (x.transpose(2, 3, 0, 1).reshape(channels * m, 1, h, w),)

    return Layout("conv-depthwise", ours, theirs)


def heads_in(heads: int) -> Layout:
    """A projection into N heads: torch (N·K, D) ↔ (D, N, K)."""
    return Layout(
        "heads-in",
        lambda x: (x.reshape(heads, -1, x.shape[1]).transpose(2, 0, 1),),
        lambda x: (x.transpose(1, 2, 0).reshape(-1, x.shape[0]),),
    )


def heads_out(heads: int) -> Layout:
    """A projection out of N heads: torch (D, N·K) ↔ (N, K, D)."""
    return Layout(
        "heads-out",
        lambda x: (x.reshape(x.shape[0], heads, -1).transpose(1, 2, 0),),
        lambda x: (x.transpose(2, 0, 1).reshape(x.shape[2], -1),),
    )


def heads_bias(heads: int) -> Layout:
    """The bias of a projection into N heads: (N·K,) ↔ (N, K)."""
    return Layout("heads-bias", lambda x: (x.reshape(heads, -1),), lambda x: (x.reshape(-1),))


def fused(parts: int, *, axis: int = 0, layout: Layout = LINEAR) -> Layout:
    """One tensor of theirs that holds `parts` equal pieces along `axis` (a fused qkv) ↔ that many leaves of ours."""
    return Layout(
        f"fused-{parts}-{layout.name}",
        lambda x: tuple(layout.ours(piece)[0] for piece in np.split(x, parts, axis=axis)),
        lambda *xs: (np.concatenate([layout.theirs(x)[0] for x in xs], axis=axis),),
    )


def stacked(count: int, *, layout: Layout = LINEAR) -> Layout:
    """`count` tensors of theirs (one a layer or expert) ↔ one leaf of ours with a leading axis."""
    return Layout(
        f"stacked-{count}-{layout.name}",
        lambda *xs: (np.stack([layout.ours(x)[0] for x in xs]),),
        lambda x: tuple(layout.theirs(piece)[0] for piece in x),
    )


def reshaped(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
    """A change of shape alone: their (1, 1, D) class token ↔ our (D,)."""
    if math.prod(theirs) != math.prod(ours):
        raise ValueError(f"{theirs} and {ours} hold different numbers of elements")
    return Layout("reshaped", lambda x: (x.reshape(ours),), lambda x: (x.reshape(theirs),))


def their_shapes(entry: Row, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The shapes that the tensors of `entry` must have, given the shapes of our leaves. Allocates nothing large."""
    dummies = [np.broadcast_to(np.empty((), np.int8), shapes[path]) for path in entry.ours]
    return tuple(x.shape for x in entry.layout.theirs(*dummies))
