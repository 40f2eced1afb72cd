"""CLIP's folders: read, written bit for bit, and read again by transformers with nothing missing and nothing left."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from tests.clip_files import TEXT, VISION, save_clip
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.types import Model
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.data.image_text import ImageTextProcessor
from tljax.models import get_family
from tljax.models.contrast import Contrast, Projection, ZeroShot
from tljax.models.forward import init_variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"), logit_scale_init_value=1.5)


def strict(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def same_files(one, two):
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_clip_goes_out_as_it_came_in(folder, tmp_path):
    pretrained = load_pretrained(folder)
    assert isinstance(pretrained.model.head, Contrast) and isinstance(pretrained.processor, ImageTextProcessor)
    assert not pretrained.variables["extras"]
    np.testing.assert_allclose(pretrained.variables["params"]["head"]["logit_scale"], 1.5)
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out", processor=pretrained.processor)
    same_files(folder, tmp_path / "out")
    strict(transformers.AutoModel, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["CLIPModel"]
    again = load_pretrained(tmp_path / "out")
    assert again.model == pretrained.model


@pytest.mark.parametrize("wing, part", [("Text", TEXT), ("Vision", VISION)])
@pytest.mark.parametrize("projected", [False, True])
def test_a_tower_alone_goes_out_as_it_came_in(wing, part, projected, tmp_path):
    name = f"CLIP{wing}Model{'WithProjection' * projected}"
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    cls(getattr(transformers, f"CLIP{wing}Config")(**part, projection_dim=6)).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    assert isinstance(pretrained.model.head, Projection) == projected
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    same_files(tmp_path / "in", tmp_path / "out")
    strict(cls, tmp_path / "out")


def test_a_clip_without_a_checkpoint_goes_out_with_its_whole_config(tmp_path):
    family = get_family("clip")
    config = family.configure({"text_config": TEXT, "vision_config": VISION, "projection_dim": 10})
    model = Model("clip", config, family.backbone(config), Contrast())
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    variables = {**jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes), "extras": {}}
    save_pretrained(model, variables, tmp_path / "out")
    strict(transformers.CLIPModel, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.model.config == config
    flat = flatten(again.variables["params"])
    assert set(flat) == set(flatten(variables["params"]))


def test_a_zero_shot_head_has_no_class_of_transformers(folder, tmp_path):
    pretrained = load_pretrained(folder)
    params = {**pretrained.variables["params"], "head": {"kernel": jnp.ones((10, 3)), "logit_scale": jnp.float32(1)}}
    with pytest.raises(UserError, match="ZeroShot"):
        save_pretrained(
            pretrained.model._replace(head=ZeroShot(3)), {**pretrained.variables, "params": params}, tmp_path / "out"
        )


def test_larger_images_and_longer_texts_equal_the_reference(folder, tmp_path):
    pretrained = load_pretrained(folder)
    model, variables, notes = adapt(
        pretrained.model, pretrained.variables, rng=jax.random.key(0), image_size=12, max_position_embeddings=20
    )
    assert len(notes) == 2
    save_pretrained(model, variables, tmp_path / "out")
    theirs = strict(transformers.CLIPModel, tmp_path / "out")
    assert theirs.config.vision_config.image_size == 12 and theirs.config.text_config.max_position_embeddings == 20
    own = transformers.CLIPModel.from_pretrained(folder).vision_model.embeddings
    with torch.no_grad():
        wanted = own.interpolate_pos_encoding(torch.zeros(1, 10, 20), 12, 12)[0]
    ours = variables["params"]["backbone"]["vision"]["embed"]["position"]
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
