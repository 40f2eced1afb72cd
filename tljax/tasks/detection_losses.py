"""Losses of detectors, one number an image: which prediction answers for which box, and how wrong it is.

All shapes are static: M boxes an image, padded with label −1; N predictions. Boxes are x0 y0 x1 y1 as shares of the
input. A box that is marked `ignore` is nobody's to find, and what overlaps it is not told that there is nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.models.boxes import iou, pair_ciou, to_centers
from tljax.models.ssd import encode
from tljax.models.yolo import YoloHead, decode

SOMEWHERE = (0.0, 0.0, 1.0, 1.0)
"""A box for places that do not count, where every formula has finite gradients."""
LARGEST = 10.0
"""Of the logarithm of a size over that of its anchor."""


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−log p of independent decisions, elementwise."""
    return jax.nn.softplus(logits) - targets * logits


def smooth_l1(difference: jax.Array) -> jax.Array:
    """Half the square up to 1, linear beyond; elementwise. Girshick 2015, equation 3."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * jnp.square(difference), size - 0.5)


def anchor_iou(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """IoU of the shapes alone, as if the centres were one: sizes (M, 2) and (T, 2) → (M, T)."""
    inside = jnp.prod(jnp.minimum(boxes[:, None], anchors[None]), axis=-1)
    union = jnp.prod(boxes, axis=-1)[:, None] + jnp.prod(anchors, axis=-1)[None] - inside
    return inside / jnp.maximum(union, 1e-9)


def yolo_assignment(
    boxes: jax.Array,
    valid: jax.Array,
    grids: Sequence[tuple[int, int]],
    anchors: Sequence[Sequence[tuple[float, float]]],
    size: tuple[int, int],
    *,
    match: float,
) -> tuple[jax.Array, jax.Array]:
    """Which predictions answer for which boxes of one image.

    A box belongs to the cell of its centre and, there, to the anchor whose shape has the greatest IoU with its own
    (Redmon and Farhadi 2018), and to all others with an IoU above `match` (Bochkovskiy et al. 2020).

    Args:
      boxes: (M, 4).
      valid: (M,) bool.
      grids: (rows, columns) of each map.
      anchors: (width, height) in pixels of the anchors of each map; T in all.
      size: (height, width) of the input in pixels.
      match: 1 leaves the best anchor alone.

    Returns:
      `places` (M, T) int32, the number of the prediction, in the order of `tljax.models.yolo.decode`, of each anchor at
      each box; `assigned` (M, T) bool.
    """
    centres = to_centers(boxes)
    pixels = jnp.array(size[::-1], jnp.float32)
    flat = jnp.array([anchor for own in anchors for anchor in own], jnp.float32)
    shape = anchor_iou(centres[:, 2:] * pixels, flat)
    best = jnp.argmax(shape, axis=1)[:, None] == jnp.arange(len(flat))
    assigned = (best | (shape > match)) & valid[:, None]
    places, first = [], 0
    for (rows, columns), own in zip(grids, anchors, strict=True):
        cells = jnp.floor(centres[:, :2] * jnp.array([columns, rows])).astype(jnp.int32)
        column, row = jnp.clip(cells[:, 0], 0, columns - 1), jnp.clip(cells[:, 1], 0, rows - 1)
        places.append(first + ((row * columns + column) * len(own))[:, None] + jnp.arange(len(own)))
        first += rows * columns * len(own)
    return jnp.concatenate(places, axis=1).astype(jnp.int32), assigned


def yolo_loss(
    raw: Sequence[jax.Array],
    targets: Mapping[str, jax.Array],
    head: YoloHead,
    size: tuple[int, int],
    *,
    match: float = 0.213,
    ignore: float = 0.7,
    box: float = 2.0,
    objectness: float = 1.0,
    classes: float = 1.0,
) -> jax.Array:
    """The loss of each image, (B,): 1 − CIoU, objectness and classes.

    With P pairs of a box and a prediction that answers for it, the loss is `box` · mean of 1 − CIoU over the pairs,
    plus `classes` · mean over the pairs of the summed binary cross entropies of the classes, plus `objectness` · the
    sum of its binary cross entropies, over max(P, 1). Its target is 1 where a prediction answers for a box, else 0, but
    what overlaps any box with an IoU above `ignore` is left out. Zheng et al. 2020; Bochkovskiy et al. 2020.

    Args:
      raw: of the head, for each map (B, H, W, A, 5 + Y).
      targets: `boxes` (B, M, 4), `labels` (B, M), `ignore` (B, M).
      head: its anchors, and how centers and sizes are decoded.
      size: (height, width) of the input in pixels.
      match: see `yolo_assignment`.
    """
    # An overflow of the exponential would make gradients NaN, even where they are masked.
    bounded = [x.at[..., 2:4].set(jnp.clip(x[..., 2:4], -LARGEST, LARGEST)) for x in map(jnp.asarray, raw)]
    found, _ = decode(bounded, head.anchors, size, scale_x_y=head.scale_x_y, new_coords=head.new_coords)
    flat = [x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1]) for x in raw]
    logits, grids = jnp.concatenate(flat, axis=1), [x.shape[1:3] for x in raw]
    # In pixels: the ratio of width to height, which CIoU compares, is that of the picture.
    pixels = jnp.array([size[1], size[0]] * 2, jnp.float32)

    def one(found, logits, boxes, labels, ignored):
        real = labels >= 0
        places, assigned = yolo_assignment(boxes, real & ~ignored, grids, head.anchors, size, match=match)
        pairs = jnp.maximum(assigned.sum(), 1)
        chosen, somewhere = logits[places], jnp.array(SOMEWHERE)
        # A masked infinity would still make the gradient NaN, so that unassigned pairs get harmless boxes.
        predicted = jnp.where(assigned[..., None], found[places], somewhere) * pixels
        wanted = jnp.where(assigned[..., None], boxes[:, None], somewhere) * pixels
        distance = jnp.where(assigned, 1 - pair_ciou(predicted, wanted), 0).sum() / pairs
        named = jax.nn.one_hot(labels, logits.shape[-1] - 5)[:, None]
        wrong = binary_cross_entropy(chosen[..., 5:], named).sum(axis=-1)
        answers = jnp.zeros(len(logits), bool).at[jnp.where(assigned, places, len(logits))].set(True, mode="drop")
        overlap = jnp.where(real[None], jax.lax.stop_gradient(iou(found, boxes)), 0).max(axis=1)
        told = answers | (overlap <= ignore)
        there = jnp.where(told, binary_cross_entropy(logits[:, 4], answers), 0).sum() / pairs
        return box * distance + classes * jnp.where(assigned, wrong, 0).sum() / pairs + objectness * there

    return jax.vmap(one)(found, logits, targets["boxes"], targets["labels"], targets["ignore"])


def ssd_assignment(
    boxes: jax.Array, valid: jax.Array, defaults: jax.Array, *, match: float
) -> tuple[jax.Array, jax.Array]:
    """Which box each default box answers for.

    The one that it overlaps most, from an IoU of `match` on; and every box has at least the default box that overlaps
    it most (of several such boxes the last has it). Liu et al. 2016, section 2.2.

    Args:
      boxes: (M, 4).
      valid: (M,) bool.
      defaults: (N, 4).
      match: of the IoU.

    Returns:
      (N,) int32, the number of the box or −1; and (N,) float32, the greatest IoU.
    """
    overlap = jnp.where(valid[None], iou(defaults, boxes), -1.0)
    best, most = jnp.argmax(overlap, axis=1), jnp.max(overlap, axis=1)
    own = jnp.where(valid, jnp.argmax(overlap, axis=0), len(defaults))
    forced = jnp.full(len(defaults), -1).at[own].max(jnp.arange(len(boxes)), mode="drop")
    return jnp.where(forced >= 0, forced, jnp.where(most >= match, best, -1)).astype(jnp.int32), most


def ssd_loss(
    outputs: Mapping[str, Any], targets: Mapping[str, jax.Array], *, match: float = 0.5, negatives: float = 3.0
) -> jax.Array:
    """The loss of each image, (B,): smooth L1 of the offsets and cross entropy, over the default boxes that match.

    Of those that match nothing, the `negatives` times as many with the greatest loss count as background. Both sums are
    divided by the number of matches in the image. Liu et al. 2016, section 2.2.

    Args:
      outputs: `logits` (B, N, 1 + Y), background first, `offsets` (B, N, 4), `default_boxes` (N, 4).
      targets: `boxes` (B, M, 4), `labels` (B, M), `ignore` (B, M).
      match: see `ssd_assignment`.
      negatives: for each match.
    """
    defaults = outputs["default_boxes"]

    def one(logits, offsets, boxes, labels, ignored):
        real = labels >= 0
        answers, _ = ssd_assignment(boxes, real & ~ignored, defaults, match=match)
        positive = answers >= 0
        count = positive.sum()
        wanted = jnp.where(positive[:, None], boxes[answers], defaults)
        moved = jnp.where(positive, smooth_l1(offsets - encode(wanted, defaults)).sum(axis=-1), 0)
        named = jnp.where(positive, labels[answers] + 1, 0)
        wrong = -jnp.take_along_axis(jax.nn.log_softmax(logits), named[:, None], axis=1)[:, 0]
        near_ignored = jnp.where((real & ignored)[None], iou(defaults, boxes), 0).max(axis=1) >= match
        background = ~positive & ~near_ignored
        hard = jnp.where(background, jax.lax.stop_gradient(wrong), -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-hard))
        counted = positive | (background & (rank < negatives * count))
        return (moved.sum() + jnp.where(counted, wrong, 0).sum()) / jnp.maximum(count, 1)

    logits, offsets = (outputs[name].astype(jnp.float32) for name in ("logits", "offsets"))
    return jax.vmap(one)(logits, offsets, targets["boxes"], targets["labels"], targets["ignore"])
