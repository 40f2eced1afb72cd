"""Changes of shape against torch, and what they leave as it was."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from tests.models.reference import distance, import_weights, leaf_shapes, make_model, run
from tests.models.test_families import TINY
from tljax.base.errors import UserError
from tljax.models import FAMILIES, get_family
from tljax.models.resizing import (
    bicubic_matrix,
    resize_channels,
    resize_grid,
    resize_positions,
    resize_vocabulary,
)

NORMAL = np.random.default_rng(0).normal


@pytest.mark.parametrize("old, new", [((7, 7), (14, 14)), ((14, 14), (9, 5)), ((3, 8), (4, 8)), ((1, 2), (3, 3))])
@pytest.mark.parametrize("extra", [0, 2])
def test_grids_equal_torch(old, new, extra):
    table = NORMAL(size=(extra + old[0] * old[1], 6)).astype(np.float32)
    grid = torch.from_numpy(table[extra:]).reshape(1, *old, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    ours = resize_grid(table, old, new, extra=extra)
    assert ours.dtype == np.float32 and ours.shape == (extra + new[0] * new[1], 6)
    assert np.array_equal(ours[:extra], table[:extra])
    assert distance(ours[extra:], wanted.permute(0, 2, 3, 1).reshape(-1, 6)) <= 1e-6


def test_a_grid_of_the_same_size_stays_bit_equal():
    table = NORMAL(size=(1 + 12, 5)).astype(np.float32)
    assert np.array_equal(resize_grid(table, (3, 4), (3, 4), extra=1), table)
    assert np.allclose(bicubic_matrix(5, 11).sum(axis=1), 1)


def test_positions_are_cut_or_repeated():
    table = NORMAL(size=(5, 3)).astype(np.float32)
    assert np.array_equal(resize_positions(table, 3), table[:3])
    assert np.array_equal(resize_positions(table, 12), np.concatenate([table, table, table[:2]]))


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 7])
def test_a_kernel_answers_equal_channels_as_before(channels):
    kernel = NORMAL(size=(2, 2, 3, 4)).astype(np.float32)
    ours = resize_channels(kernel, channels)
    assert ours.shape == (2, 2, channels, 4)
    assert np.allclose(ours.sum(axis=2), kernel.sum(axis=2), atol=1e-5)


def test_fewer_channels_are_the_first_ones_scaled_up():
    kernel = NORMAL(size=(2, 2, 3, 4)).astype(np.float32)
    assert np.allclose(resize_channels(kernel, 2), kernel[:, :, :2] * 1.5)


def test_vocabulary():
    table = NORMAL(1.0, 0.5, size=(50, 8)).astype(np.float32)
    grown = resize_vocabulary(table, 60, jax.random.key(0))
    assert np.array_equal(grown[:50], table)
    assert np.abs(grown[50:] - table.mean(axis=0)).max() < 0.05
    assert len(np.unique(grown[50:], axis=0)) == 10
    assert np.array_equal(grown, resize_vocabulary(table, 60, jax.random.key(0)))
    assert np.array_equal(resize_vocabulary(table, 20, jax.random.key(0)), table[:20])


def test_dtypes_are_kept():
    half = NORMAL(size=(9, 4)).astype(ml_dtypes.bfloat16)
    for array in (
        resize_grid(half, (3, 3), (4, 4)),
        resize_positions(half, 4),
        resize_vocabulary(half, 12, jax.random.key(0)),
        resize_channels(half.reshape(3, 1, 3, 4), 5),
    ):
        assert array.dtype == half.dtype


VALUES = {
    "vocab_size": (7, 60),
    "max_position_embeddings": (5, 40),
    "n_positions": (5, 40),
    "image_size": (16, [24, 8]),
    "num_channels": (1, 4),
}
SQUARE = (16, 24)
"""The sizes of images that are always square."""


@pytest.mark.parametrize("name, change", [(n, c) for n in FAMILIES for c in get_family(n).resizes])
def test_a_resized_leaf_fits_the_resized_model(name, change):
    family, before = get_family(name), make_model(name, TINY[name])
    resize, old = family.resizes[change], leaf_shapes(before)
    leaf = NORMAL(size=old[family.resizes[change].path]).astype(np.float32)
    for value in SQUARE if change == "image_size" and name.startswith("clip") else VALUES[change]:
        config = resize.config(before.config, value)
        after = before._replace(config=config, backbone=family.backbone(config))
        shapes = leaf_shapes(after)
        assert {path for path in shapes if shapes[path] != old[path]} == {resize.path}
        new = resize.resize(leaf, before.config, value, jax.random.key(1))
        assert new.shape == shapes[resize.path]
        assert family.configure({**TINY[name], **resize.source(TINY[name], value)}) == config


def test_a_vit_at_another_resolution_equals_transformers():
    """transformers interpolates positions in each forward pass; we do it once."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    entries = {**TINY["vit"], "image_size": 12}
    theirs = ViTModel(ViTConfig(**entries)).eval()
    model = make_model("vit", entries)
    variables = import_weights(model, theirs.state_dict())
    resize = get_family("vit").resizes["image_size"]
    table = variables["params"]["backbone"]["embed"]["position"]
    new = resize.resize(table, model.config, [20, 16], jax.random.key(0))
    variables["params"]["backbone"]["embed"]["position"] = jnp.asarray(new)
    pixels = NORMAL(size=(2, 20, 16, 3)).astype(np.float32)
    ours = run(make_model("vit", {**entries, "image_size": [20, 16]}), variables, {"pixel_values": pixels})
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True)
    assert distance(ours["hidden"], wanted.last_hidden_state) <= 1e-5


def test_an_image_smaller_than_a_patch_is_refused():
    resize = get_family("vit").resizes["image_size"]
    with pytest.raises(UserError, match="larger than the image"):
        resize.config(make_model("vit", TINY["vit"]).config, 2)
