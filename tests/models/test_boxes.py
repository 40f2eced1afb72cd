"""Boxes against OpenCV's suppression, hand-made overlaps and Darknet's letterbox."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models import boxes as bx

SCORE, IOU = 0.3, 0.45


def random_boxes(generator, count, spread=6.0):
    low = generator.uniform(0, spread, (count, 2))
    return np.concatenate([low, low + generator.uniform(0.5, 3, (count, 2))], axis=1).astype(np.float32)


def opencv(boxes, scores):
    """(box index, score), OpenCV's own suppression."""
    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(rectangles.tolist(), scores.astype(float).tolist(), SCORE, IOU)
    return [(int(i), scores[int(i)]) for i in np.array(kept).reshape(-1)]


def test_formats_are_inverse():
    boxes = random_boxes(np.random.default_rng(0), 5)
    assert np.allclose(bx.from_centers(bx.to_centers(boxes)), boxes, atol=1e-6)
    assert np.allclose(bx.from_sizes(bx.to_sizes(boxes)), boxes, atol=1e-6)
    assert np.allclose(bx.to_centers(jnp.array([0.0, 1, 4, 3])), [2, 2, 4, 2])
    assert np.allclose(bx.to_sizes(jnp.array([1.0, 1, 4, 3])), [1, 1, 3, 2])


def test_overlaps_by_hand():
    a = jnp.array([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    b = jnp.array([[1.0, 0, 3, 2], [0, 0, 2, 2], [4, 0, 6, 2], [0, 0, 2, 4]])
    assert np.allclose(bx.iou(a, b)[0], [1 / 3, 1, 0, 1 / 2])
    assert np.all(bx.iou(a, b)[1] == 0)
    assert np.allclose(bx.giou(a, b)[0], [1 / 3, 1, -1 / 3, 1 / 2])
    # Equal shapes cost no aspect ratio; the last pair costs (atan 1 − atan ½)² · 4/π² with its weight.
    v = 4 / np.pi**2 * (np.arctan(1) - np.arctan(0.5)) ** 2
    last = 1 / 2 - 1 / 20 - v * v / (1 / 2 + v)
    assert np.allclose(bx.ciou(a, b)[0], [1 / 3 - 1 / 13, 1, -16 / 40, last])


def test_gradients_are_finite_everywhere():
    """Boxes without area, equal ones and distant ones; the overlaps serve as losses."""
    a = jnp.array([[0.0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 0, 0]])
    b = jnp.array([[0.0, 0, 0, 0], [0, 0, 2, 2], [5, 5, 6, 6], [0, 0, 1, 1]])
    for overlap in (bx.pair_iou, bx.pair_giou, bx.pair_ciou):
        gradient = jax.grad(lambda x, f=overlap: f(x, b).sum())(a)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_equals_opencv_on_a_batch(agnostic):
    generator = np.random.default_rng(1)
    boxes = np.stack([random_boxes(generator, 60) for _ in range(3)])
    scores = generator.uniform(0, 1, (3, 60, 4)).astype(np.float32)
    run = functools.partial(
        bx.nms, iou_threshold=IOU, score_threshold=SCORE, max_detections=200, class_agnostic=agnostic
    )
    found = jax.tree.map(np.asarray, jax.vmap(run)(boxes, scores))
    for i in range(3):
        if agnostic:
            label = scores[i].argmax(axis=1)
            expected = {(k, int(label[k]), s) for k, s in opencv(boxes[i], scores[i].max(axis=1))}
        else:
            expected = {(k, y, s) for y in range(4) for k, s in opencv(boxes[i], scores[i][:, y])}
        valid = found["valid"][i]
        index = {tuple(box): k for k, box in enumerate(boxes[i])}
        places = [index[tuple(box)] for box in found["boxes"][i][valid]]
        got = set(zip(places, found["labels"][i][valid].tolist(), found["scores"][i][valid], strict=True))
        assert got == expected and len(expected) > 10
        assert np.all(np.diff(found["scores"][i]) <= 0)
        assert np.all(found["labels"][i][~valid] == -1) and np.all(found["boxes"][i][~valid] == 0)


def test_suppression_keeps_the_best_few_and_may_find_nothing():
    boxes = random_boxes(np.random.default_rng(2), 30, spread=100.0)
    scores = np.linspace(0.4, 0.9, 60, dtype=np.float32).reshape(30, 2)
    found = bx.nms(boxes, scores, iou_threshold=0.5, score_threshold=0.3, max_detections=4)
    assert np.array_equal(found["scores"], np.sort(scores.reshape(-1))[::-1][:4]) and found["valid"].all()
    assert not bx.nms(boxes, scores, iou_threshold=0.5, score_threshold=0.95, max_detections=4)["valid"].any()


def test_letterbox_and_stretch():
    """640×480 in 320×320: scaled by one half, 40 pixels above and below."""
    mapping = bx.letterbox((480, 640), (320, 320))
    assert np.allclose(mapping.scale, 0.5) and np.allclose(mapping.shift, [0, 40])
    box = jnp.array([0.0, 0, 640, 480])
    assert np.allclose(bx.map_boxes(box, mapping), [0, 40, 320, 280])
    assert np.allclose(bx.unmap_boxes(bx.map_boxes(box, mapping), mapping), box)
    assert np.allclose(bx.unmap_boxes(jnp.array([-5.0, 0, 400, 320]), mapping, (480, 640)), [0, 0, 640, 480])
    tall = bx.letterbox((481, 321), (320, 416))
    assert np.allclose(tall.shift, [(416 - 321 * 320 // 481) // 2, 0])
    assert np.allclose(bx.map_boxes(box, bx.stretch((480, 640), (320, 416))), [0, 0, 416, 320])
