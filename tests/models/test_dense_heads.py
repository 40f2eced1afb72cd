"""The pyramids of the backbones, and the segmentation head against the same steps in torch."""

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, group_norm, interpolate

from tests.models.reference import distance, make_model
from tests.models.test_families import TINY, compiled, tiny
from tljax.checkpoints.adapt import output_shapes
from tljax.models.dense_heads import Segmenter

RESNET = dict(embedding_size=4, hidden_sizes=[8, 16, 20], depths=[2, 1, 2])


@pytest.mark.parametrize(
    "family, entries, wanted",
    [
        # Images of 64, 32 and (8, 12) pixels.
        ("resnet", RESNET, [(16, 16, 8), (8, 8, 16), (4, 4, 20)]),
        ("resnet", {**RESNET, "downsample_in_first_stage": True}, [(16, 16, 4), (8, 8, 8), (4, 4, 16), (2, 2, 20)]),
        ("cifar_resnet", dict(blocks=2, widths=[4, 8]), [(32, 32, 4), (16, 16, 8)]),
        ("vit", TINY["vit"], [(2, 3, 12)]),
        ("deit", TINY["deit"], [(2, 3, 12)]),
    ],
)
def test_pyramids_have_a_map_for_each_resolution(family, entries, wanted):
    shapes = output_shapes(make_model(family, entries))
    assert [x.shape[1:] for x in shapes["pyramid"]] == wanted


def test_a_pyramid_holds_the_last_map_of_each_resolution():
    _, model, variables, inputs = tiny("resnet")
    outputs, _ = compiled(model, variables, inputs, hidden_states=True)
    kept = zip(outputs["pyramid"], outputs["hidden_states"][1:], strict=True)
    assert all(np.array_equal(a, b) for a, b in kept)
    half = jax.eval_shape(lambda v: compiled(model, v, inputs, stop="stage1_block0")[0], variables)
    assert len(half["pyramid"]) == 1


def test_a_pyramid_of_patches_keeps_their_places():
    _, model, variables, inputs = tiny("deit")
    outputs, _ = compiled(model, variables, inputs)
    (patches,) = outputs["pyramid"]
    assert np.array_equal(patches[:, 1, 2], outputs["hidden"][:, 2 + 5])


def test_the_segmenter_equals_the_same_steps_in_torch():
    generator = np.random.default_rng(0)
    sizes = [(5, 6, 7), (9, 11, 4), (2, 3, 5)]  # in no order, and odd
    pyramid = tuple(generator.normal(size=(2, *size)).astype(np.float32) for size in sizes)
    head = Segmenter(classes=3, width=8)
    shapes = jax.eval_shape(head.init, jax.random.key(0), {"pyramid": pyramid})["params"]
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes)
    ours = jax.jit(lambda p, x: head.apply({"params": p}, {"pyramid": x})["logits"])(params, pyramid)

    def conv(x, name, padding=0):
        kernel, bias = params[name]["kernel"].transpose(3, 2, 0, 1), params[name].get("bias")
        return conv2d(x, torch.tensor(kernel), None if bias is None else torch.tensor(bias), padding=padding)

    def enlarge(x, size):
        return interpolate(x, size, mode="bilinear", align_corners=False)

    above, total = None, 0
    for level, place in ((2, 2), (1, 0), (0, 1)):
        x = conv(torch.tensor(pyramid[place].transpose(0, 3, 1, 2)), f"lateral{level}")
        above = x if above is None else x + enlarge(above, x.shape[2:])
        norm = params[f"norm{level}"]
        y = group_norm(conv(above, f"smooth{level}", 1), 8, torch.tensor(norm["scale"]), torch.tensor(norm["bias"]))
        total = total + enlarge(y.relu(), sizes[1][:2])
    wanted = conv(total, "out")
    assert ours.shape == (2, 9, 11, 3) and distance(ours, wanted) <= 1e-5


def test_the_segmenter_keeps_the_precision_of_its_parameters():
    pyramid = (np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 2, 2, 3), np.float32))
    head = Segmenter(classes=3, width=4)
    shapes = jax.eval_shape(head.init, jax.random.key(0), {"pyramid": pyramid})["params"]
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), shapes)
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), pyramid)
    rngs = {"dropout": jax.random.key(0)}
    for inputs in (low, pyramid):
        found = jax.eval_shape(lambda p, x: head.apply({"params": p}, {"pyramid": x}, True, rngs=rngs), half, inputs)
        assert found["logits"].dtype == "bfloat16"
