"""Losses of detectors against loops over boxes in NumPy, and torch's smooth L1 and cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from tljax.models.boxes import pair_ciou
from tljax.models.ssd import default_boxes
from tljax.models.yolo import YoloHead
from tljax.tasks.detection_losses import ssd_assignment, ssd_loss, yolo_assignment, yolo_loss

HEAD = YoloHead(
    classes=3,
    anchors=(((30.0, 20.0), (40.0, 60.0)), ((6.0, 8.0), (12.0, 10.0))),
    sizes=(1, 1),
    scale_x_y=(1.0, 1.2),
    new_coords=(False, False),
)
SIZE = (64, 96)
TARGETS = {
    "boxes": np.array(
        [
            [[0.1, 0.1, 0.2, 0.3], [0.4, 0.2, 0.9, 0.95], [0.5, 0.6, 0.62, 0.75], [0, 0, 0, 0]],
            [[0.0, 0.0, 1.0, 1.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0]] * 4,
        ],
        np.float32,
    ),
    "labels": np.array([[0, 2, 1, -1], [1, -1, -1, -1], [-1] * 4], np.int32),
    "ignore": np.array([[False, False, True, False], [False] * 4, [False] * 4]),
}


def raw(seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(0, 0.7, (3, *grid, 2, 8)).astype(np.float32) for grid in ((2, 3), (4, 6)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def overlap(a, b):
    wide, high = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - wide * high
    return wide * high / max(union, 1e-12)


def slow_yolo(maps, boxes, labels, ignored, *, match, ignore):
    """The loss of an image, by loops, in float64."""
    real = [(box * np.array([96, 64, 96, 64]), n, skip) for box, n, skip in zip(boxes, labels, ignored, strict=True)]
    real = [entry for entry in real if entry[1] >= 0]
    anchors = [(m, a, size) for m, own in enumerate(HEAD.anchors) for a, size in enumerate(own)]

    def box_at(m, i, j, a):
        x, (rows, columns) = maps[m][i, j, a], maps[m].shape[:2]
        cx, cy = ((sigmoid(x[k]) - 0.5) * HEAD.scale_x_y[m] + 0.5 + (j, i)[k] for k in (0, 1))
        cx, cy = cx / columns * 96, cy / rows * 64
        w, h = (np.exp(x[2 + k]) * HEAD.anchors[m][a][k] for k in (0, 1))
        return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])

    pairs = []
    for box, label, skip in real:
        w, h = box[2] - box[0], box[3] - box[1]
        shapes = []
        for _, _, (aw, ah) in anchors:
            inside = min(w, aw) * min(h, ah)
            shapes.append(inside / (w * h + aw * ah - inside))
        for k, (m, a, _) in enumerate(anchors):
            if not skip and (k == int(np.argmax(shapes)) or shapes[k] > match):
                rows, columns = maps[m].shape[:2]
                i = min(int((box[1] + box[3]) / 2 / 64 * rows), rows - 1)
                pairs.append(((m, i, min(int((box[0] + box[2]) / 2 / 96 * columns), columns - 1), a), box, label))
    distance = wrong = there = 0.0
    for place, box, label in pairs:
        distance += 1 - float(pair_ciou(jnp.asarray(box_at(*place)), jnp.asarray(box)))
        p = sigmoid(maps[place[0]][place[1:]][5:])
        wrong += -sum(np.log(p[k] if k == label else 1 - p[k]) for k in range(3))
    answers = {place for place, _, _ in pairs}
    for m, x in enumerate(maps):
        for i, j, a in np.ndindex(x.shape[:3]):
            p = sigmoid(x[i, j, a, 4])
            if (m, i, j, a) in answers:
                there -= np.log(p)
            elif max([overlap(box_at(m, i, j, a), box) for box, _, _ in real], default=0) <= ignore:
                there -= np.log(1 - p)
    count = max(len(pairs), 1)
    return np.array([distance, wrong, there]) / count


@pytest.mark.parametrize("match", [1.0, 0.25])
def test_yolo_s_loss_is_that_of_loops(match):
    maps = raw()
    options = {"match": match, "ignore": 0.3}
    loss = jax.jit(lambda raw, targets, **w: yolo_loss(raw, targets, HEAD, SIZE, **options, **w))
    parts = [loss(maps, TARGETS, **{n: float(n == name) for n in ("box", "classes", "objectness")}) for name in
             ("box", "classes", "objectness")]  # fmt: skip
    for b in range(3):
        args = [TARGETS[name][b] for name in ("boxes", "labels", "ignore")]
        slow = slow_yolo([x[b].astype(np.float64) for x in maps], *args, **options)
        np.testing.assert_allclose([part[b] for part in parts], slow, rtol=2e-5, atol=1e-6)
    assert parts[0][2] == parts[1][2] == 0 and parts[2][2] > 0  # an image without boxes


def test_a_box_belongs_to_the_cell_of_its_centre_and_the_anchor_of_its_shape():
    places, assigned = yolo_assignment(
        jnp.asarray(TARGETS["boxes"][0]), jnp.array([1, 1, 1, 0], bool), ((2, 3), (4, 6)), HEAD.anchors, SIZE, match=1.0
    )
    assert assigned.sum(axis=1).tolist() == [1, 1, 1, 0]
    assert np.argmax(assigned[:3], axis=1).tolist() == [3, 1, 3]  # 9.6 × 12.8, 48 × 48 and 11.5 × 9.6 pixels
    # Centre (0.15, 0.2): row 0, column 0 of the fine map, whose predictions come after the coarse ones'.
    assert places[0, 3] == 2 * 3 * 2 + 0 * 2 + 1
    assert places[1, 1] == (1 * 3 + 1) * 2 + 1
    assert places[2, 3] == 12 + (2 * 6 + 3) * 2 + 1


def test_gradients_are_finite_where_a_prediction_explodes():
    maps = [x.copy() for x in raw()]
    maps[0][..., 2:4] = 200.0  # exp overflows
    gradient = jax.jit(jax.grad(lambda x: yolo_loss(x, TARGETS, HEAD, SIZE, match=1.0).sum()))(
        tuple(map(jnp.asarray, maps))
    )
    assert all(np.isfinite(g).all() for g in gradient)


def test_ssd_s_assignment_gives_every_box_its_own():
    defaults = jnp.array([[0, 0, 0.5, 0.5], [0, 0, 0.45, 0.5], [0.5, 0.5, 1, 1], [0.4, 0.4, 0.6, 0.6]])
    boxes = jnp.array([[0, 0, 0.5, 0.5], [0.9, 0.9, 1, 1], [0, 0, 0, 0]])
    answers, overlaps = ssd_assignment(boxes, jnp.array([True, True, False]), defaults, match=0.5)
    assert answers.tolist() == [0, 0, 1, -1]  # the third although its overlap is 0.04
    np.testing.assert_allclose(overlaps[1], 0.9, rtol=1e-6)
    nothing, _ = ssd_assignment(boxes, jnp.zeros(3, bool), defaults, match=0.5)
    assert nothing.tolist() == [-1] * 4


def slow_ssd(logits, offsets, boxes, labels, defaults):
    """The loss of an image as torchvision's SSD has it, in torch."""
    real = labels >= 0
    boxes, labels = torch.tensor(boxes[real]), torch.tensor(labels[real])
    overlaps = torch.tensor([[overlap(d, b) for d in defaults] for b in boxes.numpy()])
    best, answers = overlaps.max(0)
    answers[best < 0.5] = -1
    answers[overlaps.argmax(1)] = torch.arange(len(boxes))
    on = answers >= 0
    d, b = torch.tensor(defaults)[on], boxes[answers[on]]
    centre = ((b[:, :2] + b[:, 2:]) - (d[:, :2] + d[:, 2:])) / 2 / (d[:, 2:] - d[:, :2]) * 10
    size = torch.log((b[:, 2:] - b[:, :2]) / (d[:, 2:] - d[:, :2])) * 5
    moved = functional.smooth_l1_loss(torch.tensor(offsets)[on], torch.cat([centre, size], 1), reduction="sum")
    wanted = torch.zeros(len(defaults), dtype=torch.long)
    wanted[on] = labels[answers[on]].long() + 1
    each = functional.cross_entropy(torch.tensor(logits), wanted, reduction="none")
    negative = each.clone()
    negative[on] = -torch.inf
    hard = negative.sort(descending=True)[1].sort()[1] < 3 * on.sum()
    return float((moved + each[on].sum() + each[hard].sum()) / on.sum())


def test_ssd_s_loss_is_torch_s():
    defaults = default_boxes(((4, 4), (2, 2)), (64, 64), (1, 2), (20, 50, 90), (16, 32)).astype(np.float32)
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(3, len(defaults), 4)).astype(np.float32)
    offsets = generator.normal(0, 2, (3, len(defaults), 4)).astype(np.float32)
    targets = {**TARGETS, "ignore": np.zeros((3, 4), bool)}
    outputs = {"logits": logits, "offsets": offsets, "default_boxes": defaults}
    loss = jax.jit(lambda o, t: ssd_loss(o, t))
    ours = loss(outputs, targets)
    for b in (0, 1):
        slow = slow_ssd(logits[b], offsets[b], targets["boxes"][b], targets["labels"][b], defaults)
        np.testing.assert_allclose(ours[b], slow, rtol=1e-5)
    assert ours[2] == 0
    # What overlaps an ignored box is not told that it is background: only boxes of images 0 and 1 differ.
    ignored = loss(outputs, {**targets, "ignore": targets["labels"] == 2})
    assert ignored[0] != ours[0] and ignored[1] == ours[1]
