"""Darknet detectors against OpenCV: every section and activation, heads, decoding; heads for other classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.darknet import EVERYTHING, NET, OUTPUTS, conv, detector, opencv, section, write
from tests.models.reference import leaf_shapes, make_model
from tljax import load_pretrained
from tljax.base.errors import UserError
from tljax.checkpoints.adapt import adapt
from tljax.models.forward import forward
from tljax.models.yolo import YoloConfig, configure, decode, from_centers, make_head

OPENCV_THRESHOLD = 0.2
"""OpenCV's layer sets scores below it to 0."""


def outputs_of(model, variables, pixels):
    return jax.jit(lambda v, x: forward(model, v, {"pixel_values": x})[0])(variables, pixels)


def assert_equal_detections(head, raw, image_size, theirs):
    """Decoded boxes and scores, map by map, against those of OpenCV's layers."""
    boxes, scores = decode(raw, head.anchors, image_size, scale_x_y=head.scale_x_y, new_coords=head.new_coords)
    theirs = np.concatenate([x.reshape(len(boxes), -1, x.shape[-1]) for x in theirs], axis=1)
    assert np.allclose(boxes, from_centers(theirs[..., :4]), atol=1e-5)
    clear = np.abs(np.asarray(scores) - OPENCV_THRESHOLD) > 1e-5
    assert np.allclose(np.where(clear & (scores > OPENCV_THRESHOLD), scores, 0), theirs[..., 5:] * clear, atol=1e-5)
    assert (theirs[..., 5:] > 0).sum() > 100


def relative(ours, theirs):
    return np.abs(np.asarray(ours).reshape(theirs.shape) - theirs).max() / np.abs(theirs).max()


def test_every_section_equals_opencv(tmp_path):
    weights = write(tmp_path, EVERYTHING)
    model, variables, _ = load_pretrained(weights)
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 48, 64, 3)).astype(np.float32)
    outputs = outputs_of(model, variables, pixels)
    *maps, first, second = opencv(weights, pixels, OUTPUTS)
    assert [x.shape for x in outputs["raw"]] == [(2, 6, 8, 2, 8), (2, 12, 16, 1, 8)]
    for ours, theirs in zip(outputs["raw"], maps, strict=True):
        assert relative(ours, theirs) < 1e-5
    assert_equal_detections(model.head, outputs["raw"], (48, 64), (first, second))
    assert outputs["pooled"] is None and np.array_equal(outputs["hidden"], outputs["pyramid"][0])


def test_convolutions_before_the_first_weights_and_other_input_sizes(tmp_path):
    """A network that begins with a maximum, run at twice its size: anchors stay as many pixels."""
    cfg = NET + section("maxpool", size=3, stride=2) + conv(6, 3, groups=3) + detector("0,1,2", classes=2)
    model, variables, _ = load_pretrained(write(tmp_path, cfg))
    assert model.backbone.stages == ("layer1",)
    pixels = np.random.default_rng(1).uniform(0, 1, (1, 96, 128, 3)).astype(np.float32)
    large = outputs_of(model, variables, pixels)["raw"]
    big = cfg.replace("width=64", "width=128").replace("height=48", "height=96")
    weights = write(tmp_path, big, stem="big")
    theirs = opencv(weights, pixels, ("conv_2", "yolo_3"))
    assert relative(large[0], theirs[0]) < 1e-5
    assert_equal_detections(model.head, large, (96, 128), theirs[1:])


def test_a_head_for_other_classes_keeps_places_and_anchors(tmp_path):
    model, variables, _ = load_pretrained(write(tmp_path, EVERYTHING))
    new, filled, _ = adapt(model, variables, head=make_head(model.config, 5))
    assert filled["params"]["head"]["out0"]["kernel"].shape == (1, 1, 10, 2 * 10)
    outputs = outputs_of(new, filled, np.zeros((1, 48, 64, 3), np.float32))
    assert [x.shape for x in outputs["raw"]] == [(1, 6, 8, 2, 10), (1, 12, 16, 1, 10)]
    assert new.head.anchors == model.head.anchors
    _, scores = decode(outputs["raw"], new.head.anchors, (48, 64))
    assert 0.003 < float(scores.mean()) < 0.007  # 0.01 for an object, one half for a class


def test_inputs_that_do_not_fit_are_refused():
    model = make_model("yolo", {"cfg": EVERYTHING})
    for shape, message in (
        ((1, 50, 64, 3), "the height is 50, and must be a multiple of 8, such as 56"),
        ((1, 48, 60, 3), "the width is 60"),
        ((1, 48, 64, 1), "num_channels"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda s=shape: forward(model, {"params": {}}, {"pixel_values": jnp.zeros(s)})[0])


def test_the_built_in_network_has_its_published_size():
    """yolov3-tiny.weights holds 8 858 734 floats after its header."""
    shapes = leaf_shapes(make_model("yolo", {}, "DarknetForObjectDetection"))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 8_858_734
    assert configure({}) == YoloConfig() and configure({}).description.multiple == 32
