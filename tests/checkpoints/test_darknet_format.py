"""Darknet's files: real networks against OpenCV down to the boxes, the way back byte for byte, and bad files."""

import json

import cv2
import jax
import numpy as np
import pytest

from tests.models.darknet import EVERYTHING, HEADER, NET, conv, detector, opencv, write
from tljax import load_pretrained, save_pretrained
from tljax.base.errors import UserError
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.darknet_format import with_classes
from tljax.models.boxes import from_centers, nms
from tljax.models.darknet_cfg import parse
from tljax.models.forward import forward
from tljax.models.heads import Classifier
from tljax.models.yolo import decode, detectors, make_head

SCORE, IOU = 0.25, 0.45
SMALL = NET + conv(4, 3, stride=2) + detector("0,1,2", classes=3)


def suppressed(boxes, scores):
    """{(label, index of the box)} that OpenCV keeps, class by class."""
    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float).tolist()
    found = set()
    for label in np.flatnonzero(scores.max(axis=0) > SCORE):
        kept = cv2.dnn.NMSBoxes(rectangles, scores[:, label].astype(float).tolist(), SCORE, IOU)
        found |= {(int(label), int(i)) for i in np.array(kept).reshape(-1)}
    return found


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_networks_equal_opencv_and_go_back_byte_for_byte(name, weights_dir, data_dir, tmp_path):
    weights = weights_dir / "yolo_fastest" / f"{name}.weights"
    model, variables, processor = load_pretrained(weights)
    photographs = sorted((data_dir / "bsds500" / "train").glob("*.jpg"))[:4]
    pixels = np.stack([processor.example({"image": p.read_bytes()}, None)["pixel_values"] for p in photographs])
    head = model.head

    @jax.jit
    def run(variables, pixels):
        raw = forward(model, variables, {"pixel_values": pixels})[0]["raw"]
        boxes, scores = decode(raw, head.anchors, pixels.shape[1:3], scale_x_y=head.scale_x_y)
        options = dict(iou_threshold=IOU, score_threshold=SCORE, max_detections=60)
        return raw, boxes, jax.vmap(lambda b, s: nms(b, s, **options))(boxes, scores)

    raw, boxes, found = jax.tree.map(np.asarray, run(variables, pixels))
    *maps, coarse, fine = opencv(weights, pixels, ("conv_120", "conv_129", "yolo_121", "yolo_130"))
    for ours, theirs in zip(raw, maps, strict=True):
        assert np.abs(ours.reshape(theirs.shape) - theirs).max() <= 1e-4 * np.abs(theirs).max()
    detections = np.concatenate([x.reshape(len(pixels), -1, 85) for x in (coarse, fine)], axis=1)
    count = 0
    for i, theirs in enumerate(detections):
        corners = np.asarray(from_centers(theirs[:, :4]))
        assert np.abs(boxes[i] - corners).max() < 1e-4
        valid = found["valid"][i]
        places = [int(np.flatnonzero((boxes[i] == box).all(axis=1))[0]) for box in found["boxes"][i][valid]]
        assert set(zip(found["labels"][i][valid].tolist(), places, strict=True)) == suppressed(corners, theirs[:, 5:])
        count += len(places)
    assert count >= 4  # something was found at all

    save_pretrained(model, variables, tmp_path / "out")
    assert (tmp_path / "out" / "model.weights").read_bytes() == weights.read_bytes()
    assert (tmp_path / "out" / "model.cfg").read_bytes() == weights.with_suffix(".cfg").read_bytes()


def test_a_folder_says_what_it_is_and_keeps_odd_bytes(tmp_path):
    """No family is named; the text comes back with Windows' line ends, Latin letters and comments."""
    weights = write(tmp_path, SMALL)
    text = b"# caf\xe9\r\n" + SMALL.replace("\n", "\r\n").encode()
    weights.with_suffix(".cfg").write_bytes(text)
    weights.rename(tmp_path / "other.weights")  # the only .cfg beside it belongs to it
    model, variables, processor = load_pretrained(tmp_path)
    assert model.family == "yolo" and processor.size == (48, 64)
    assert json.loads(model.source)["cfg"].encode("utf8", "surrogateescape") == text
    save_pretrained(model, variables, tmp_path / "out", processor=processor, classes=("a", "b", "c"))
    assert (tmp_path / "out" / "model.cfg").read_bytes() == text
    assert (tmp_path / "out" / "model.weights").read_bytes() == (tmp_path / "other.weights").read_bytes()
    again = load_pretrained(tmp_path / "out")
    assert again.model.config == model.config and again.processor.facts == processor.facts
    assert json.loads(again.model.source)["id2label"] == {"0": "a", "1": "b", "2": "c"}
    save_pretrained(again.model, again.variables, tmp_path / "out")  # in the place of a model


def test_the_old_header_is_read(tmp_path):
    """Before version 0.2 the number of images is an int32."""
    weights = write(tmp_path, SMALL)
    new = weights.read_bytes()
    old = np.array([0, 1, 0, 7], "<i4").tobytes() + new[len(HEADER) :]
    first = load_pretrained(weights)
    weights.write_bytes(old)
    model, variables, _ = load_pretrained(weights)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"], first.variables["params"]))
    save_pretrained(model, variables, tmp_path / "out")
    assert (tmp_path / "out" / "model.weights").read_bytes() == old


def test_a_network_with_other_classes_is_read_by_opencv(tmp_path):
    model, variables, _ = load_pretrained(write(tmp_path, EVERYTHING))
    model, variables, _ = adapt(model, variables, head=make_head(model.config, 5))
    save_pretrained(model, variables, tmp_path / "out", classes=list("abcde"))
    again = load_pretrained(tmp_path / "out")
    assert again.model.head.classes == 5
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 48, 64, 3)).astype(np.float32)
    ours = jax.jit(lambda v, x: forward(again.model, v, {"pixel_values": x})[0]["raw"])(again.variables, pixels)
    theirs = opencv(tmp_path / "out" / "model.weights", pixels, ("conv_16", "conv_23"))
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(a).reshape(b.shape) - b).max() <= 1e-5 * np.abs(b).max()


def test_only_two_lines_of_a_detector_change_with_its_classes():
    text = SMALL.replace("filters=24", "filters = 24  # 3 · (5 + 3)")
    new = with_classes(text, 7).split("\n")
    assert [(a, b) for a, b in zip(text.split("\n"), new, strict=True) if a != b] == [
        ("filters = 24  # 3 · (5 + 3)", "filters = 36  # 3 · (5 + 3)"),
        ("classes=3", "classes=7"),
    ]
    silent = NET + conv(4) + detector("0,1,2", classes=20).replace("classes=20\n", "")
    assert parse(with_classes(silent, 2)).sections[2].get("classes") == 2


def test_heads_that_a_cfg_cannot_describe_are_refused(tmp_path):
    model, variables, _ = load_pretrained(write(tmp_path, SMALL))
    anchors = (((1.0, 1.0),) * 3,)
    for head in (None, Classifier(3, pool="mean"), make_head(model.config).clone(anchors=anchors)):
        with pytest.raises(UserError, match="cannot be written as Darknet"):
            save_pretrained(model._replace(head=head), variables, tmp_path / "out")
    assert not (tmp_path / "out").exists() and detectors(model.config)[0].anchors != anchors[0]


def test_bad_files_are_refused(tmp_path):
    weights = write(tmp_path, SMALL)
    content, cfg = weights.read_bytes(), weights.with_suffix(".cfg")
    floats = (len(content) - len(HEADER)) // 4
    for bad, found in ((content[:-8], floats - 2), (content + bytes(4), floats + 1), (content[:-1], floats - 0.25)):
        weights.write_bytes(bad)
        message = rf"net\.weights does not fit .*net\.cfg: the description has {floats} floats, .* holds {found} after"
        with pytest.raises(UserError, match=message):
            load_pretrained(weights)
    for bad in (b"", HEADER[:6], HEADER):
        weights.write_bytes(bad)
        with pytest.raises(UserError, match="holds 0 after"):
            load_pretrained(weights)
    weights.write_bytes(content[:24] + np.float32(np.nan).tobytes() + content[28:])
    with pytest.raises(UserError, match=r"layer0\.biases in .*net\.weights: 1 of 4 values"):
        load_pretrained(weights)
    cfg.write_text(SMALL + "[gru]\n")
    with pytest.raises(UserError, match=r"net\.cfg describes no network .*\n.*\[gru\] is not implemented"):
        load_pretrained(tmp_path)
    cfg.rename(tmp_path / "a.cfg")
    (tmp_path / "b.cfg").write_text(SMALL)
    with pytest.raises(UserError, match=r"needs its description beside it: net\.cfg.* Found: a\.cfg, b\.cfg"):
        load_pretrained(tmp_path)
    (tmp_path / "second.weights").write_bytes(content)
    with pytest.raises(UserError, match=r"several networks: net\.weights, second\.weights"):
        load_pretrained(tmp_path)
