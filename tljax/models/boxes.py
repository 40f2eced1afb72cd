"""Boxes: formats, overlaps, suppression of duplicates, and the way between an image and a network's input.

A box is (x0, y0, x1, y1), in any unit; boxes without area overlap nothing. All shapes are static, so that everything
compiles and can be mapped over a batch with `jax.vmap`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

EPSILON = 1e-9


def from_centers(boxes: jax.Array) -> jax.Array:
    """(center x, center y, width, height) → (x0, y0, x1, y1); shape (…, 4)."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def to_centers(boxes: jax.Array) -> jax.Array:
    """(x0, y0, x1, y1) → (center x, center y, width, height); shape (…, 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def from_sizes(boxes: jax.Array) -> jax.Array:
    """(x0, y0, width, height), as COCO stores them, → (x0, y0, x1, y1); shape (…, 4)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_sizes(boxes: jax.Array) -> jax.Array:
    """(x0, y0, x1, y1) → (x0, y0, width, height); shape (…, 4)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def area(boxes: jax.Array) -> jax.Array:
    """(…, 4) → (…); 0 for a box whose corners are in the wrong order."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def pair_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of boxes that broadcast against each other, (…, 4) and (…, 4) → (…)."""
    return _overlap(a, b)[0]


def pair_giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU, in (−1, 1], of boxes that broadcast. Rezatofighi et al. 2019, arXiv:1902.09630."""
    ratio, union = _overlap(a, b)
    hull = area(_hull(a, b))
    return ratio - (hull - union) / jnp.maximum(hull, EPSILON)


def pair_ciou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Complete IoU of boxes that broadcast. Zheng et al. 2020, arXiv:1911.08287, equations 8 to 12.

    The weight of the aspect ratio has no gradient, as in the paper.
    """
    ratio, _ = _overlap(a, b)
    hull = to_sizes(_hull(a, b))[..., 2:]
    ca, cb = to_centers(a), to_centers(b)
    distance = jnp.sum(jnp.square(ca[..., :2] - cb[..., :2]), axis=-1)
    diagonal = jnp.maximum(jnp.sum(jnp.square(hull), axis=-1), EPSILON)
    angles = [jnp.arctan(c[..., 2] / jnp.maximum(c[..., 3], EPSILON)) for c in (ca, cb)]
    shape = 4 / jnp.pi**2 * jnp.square(angles[0] - angles[1])
    weight = jax.lax.stop_gradient(shape / jnp.maximum(1 - ratio + shape, EPSILON))
    return ratio - distance / diagonal - weight * shape


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(intersection over union, union)."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    inside = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    union = area(a) + area(b) - inside
    return inside / jnp.maximum(union, EPSILON), union


def _hull(a: jax.Array, b: jax.Array) -> jax.Array:
    """The smallest box around both."""
    return jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """`pair_iou` of every box of `a` (M, 4) with every box of `b` (N, 4): (M, N)."""
    return pair_iou(a[:, None], b[None])


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """`pair_giou` of every box of `a` (M, 4) with every box of `b` (N, 4): (M, N)."""
    return pair_giou(a[:, None], b[None])


def ciou(a: jax.Array, b: jax.Array) -> jax.Array:
    """`pair_ciou` of every box of `a` (M, 4) with every box of `b` (N, 4): (M, N)."""
    return pair_ciou(a[:, None], b[None])


@functools.partial(jax.jit, static_argnames=("max_detections", "class_agnostic"))
def nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
) -> dict[str, jax.Array]:
    """Greedy non-maximum suppression: of boxes that overlap much, the one with the highest score stays.

    Each step takes the best score of all classes and strikes out what overlaps with it in its class; since classes do
    not touch each other, this is suppression class by class, in the order of the scores, without a sort.

    Args:
      boxes: (N, 4).
      scores: (N, Y); a box may be found for several classes.
      iou_threshold: boxes with a greater IoU are struck out.
      score_threshold: scores must be greater.
      max_detections: K; the best K stay.
      class_agnostic: a box counts for its best class only, and strikes out boxes of all classes.

    Returns:
      `boxes` (K, 4), `scores` (K,), `labels` (K,) int32, `valid` (K,) bool, in falling order of the scores; where not
      valid, boxes and scores are 0 and labels −1.
    """
    count = scores.shape[0]
    if class_agnostic:
        labels = jnp.argmax(scores, axis=1)
        alive = jnp.max(scores, axis=1)[:, None]
    else:
        labels, alive = None, scores
    alive = jnp.where(alive > score_threshold, alive, -jnp.inf)
    width = alive.shape[1]

    def step(alive: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        best = jnp.argmax(alive)
        row, column = best // width, best % width
        score, box = alive[row, column], boxes[row]
        valid = score > -jnp.inf
        struck = (pair_iou(box, boxes) > iou_threshold) | (jnp.arange(count) == row)
        alive = alive.at[:, column].set(jnp.where(struck, -jnp.inf, alive[:, column]))
        label = column if labels is None else labels[row]
        found = {
            "boxes": jnp.where(valid, box, 0),
            "scores": jnp.where(valid, score, 0),
            "labels": jnp.where(valid, label, -1).astype(jnp.int32),
            "valid": valid,
        }
        return alive, found

    return jax.lax.scan(step, alive, length=max_detections)[1]


class Mapping(NamedTuple):
    """An affine way from the pixels of an image to those of a network's input: `input = image · scale + shift`.

    Attributes:
      scale: (2,) of x and y.
      shift: (2,) of x and y, in pixels of the input.
    """

    scale: jax.Array
    shift: jax.Array


def stretch(size: tuple[int, int] | jax.Array, target: tuple[int, int] | jax.Array) -> Mapping:
    """The whole image fills the whole input.

    Args:
      size: (height, width) of the image.
      target: (height, width) of the input.
    """
    size, target = (jnp.asarray(x)[::-1].astype(jnp.float32) for x in (size, target))
    return Mapping(target / size, jnp.zeros(2))


def letterbox(size: tuple[int, int] | jax.Array, target: tuple[int, int] | jax.Array) -> Mapping:
    """The image keeps its aspect ratio and lies in the middle of the input, to the pixel as Darknet places it.

    Args:
      size: (height, width) of the image, whole numbers.
      target: (height, width) of the input, likewise.
    """
    size, target = (jnp.asarray(x, jnp.int32)[::-1] for x in (size, target))
    # Whole numbers: a product in float32 may fall just below the pixel that it should reach.
    by_width = target[0] * size[1] < target[1] * size[0]
    wide = jnp.stack([target[0], size[1] * target[0] // size[0]])
    high = jnp.stack([size[0] * target[1] // size[1], target[1]])
    inner = jnp.maximum(jnp.where(by_width, wide, high), 1)
    return Mapping(inner / size, ((target - inner) // 2).astype(jnp.float32))


def map_boxes(boxes: jax.Array, mapping: Mapping) -> jax.Array:
    """Boxes (…, 4) in pixels of the image → pixels of the input."""
    return boxes * jnp.tile(mapping.scale, 2) + jnp.tile(mapping.shift, 2)


def unmap_boxes(boxes: jax.Array, mapping: Mapping, size: tuple[int, int] | jax.Array | None = None) -> jax.Array:
    """Boxes (…, 4) in pixels of the input → pixels of the image, cut at its edges if its size (H, W) is given."""
    found = (boxes - jnp.tile(mapping.shift, 2)) / jnp.tile(mapping.scale, 2)
    if size is None:
        return found
    return jnp.clip(found, 0, jnp.tile(jnp.asarray(size)[::-1], 2))
