"""ViT and DeiT against transformers."""

import jax
import numpy as np
import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.models.vit import DEIT, FAMILY, configure

TINY = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    image_size=12,
    patch_size=4,
    initializer_range=0.3,
)

UNUSUAL = {
    "plain": {},
    "oblong image": dict(image_size=[8, 20], patch_size=4),
    "oblong patch": dict(image_size=[9, 16], patch_size=[3, 8], num_attention_heads=1),
    "patches that leave a rest": dict(image_size=[14, 17], patch_size=4),
    "grey, no qkv bias": dict(num_channels=1, qkv_bias=False, layer_norm_eps=0.05),
    "pooler of its own": dict(pooler_output_size=7, pooler_act="relu", hidden_act="gelu_new"),
    "many heads, quick gelu": dict(num_attention_heads=12, hidden_act="quick_gelu", num_channels=5),
}

REFERENCES = {"vit": (ViTConfig, ViTModel), "deit": (DeiTConfig, DeiTModel)}


def reference(config, cls, entries: dict, **options):
    torch.manual_seed(0)
    theirs = cls(config(**entries), **options).eval()
    random_norms(theirs)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("_token", "position_embeddings")):
                parameter.normal_(0, 0.5)
    return theirs


def images(model) -> np.ndarray:
    c = model.config
    return np.random.default_rng(0).normal(size=(2, *c.image_size, c.num_channels)).astype(np.float32)


def theirs_on(theirs, pixels: np.ndarray):
    with torch.no_grad():
        return theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True)


@pytest.mark.parametrize("family", REFERENCES)
@pytest.mark.parametrize("case", UNUSUAL)
def test_equals_the_reference(case, family):
    entries = {**TINY, **UNUSUAL[case]}
    theirs = reference(*REFERENCES[family], entries)
    model = make_model(family, entries)
    variables = import_weights(model, theirs.state_dict())
    pixels = images(model)
    ours, wanted = run(model, variables, {"pixel_values": pixels}), theirs_on(theirs, pixels)
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == entries["num_hidden_layers"] + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["hidden"], wanted.last_hidden_state) <= 1e-5
    assert distance(ours["pooled"], wanted.pooler_output) <= 1e-5


@pytest.mark.parametrize(
    "family, config, cls",
    [
        ("vit", ViTConfig, ViTForImageClassification),
        ("deit", DeiTConfig, DeiTForImageClassification),
        ("deit", DeiTConfig, DeiTForImageClassificationWithTeacher),
    ],
)
def test_classifiers_equal_the_reference(family, config, cls):
    entries = {**TINY, "num_labels": 5, "add_pooling_layer": False}
    theirs = reference(config, cls, {**TINY, "num_labels": 5})
    name = cls.__name__
    model = make_model(family, entries, name)
    variables = import_weights(model, theirs.state_dict(), prefix=f"{family}.", architecture=name)
    pixels = images(model)
    ours, wanted = run(model, variables, {"pixel_values": pixels}), theirs_on(theirs, pixels)
    assert distance(ours["logits"], wanted.logits) <= 1e-5
    if "distillation_logits" in wanted:
        assert distance(ours["distillation_logits"], wanted.distillation_logits) <= 1e-5
        assert distance(ours["cls_logits"], wanted.cls_logits) <= 1e-5


@pytest.mark.parametrize("family", REFERENCES)
def test_files_have_the_names_of_the_table(family, tmp_path):
    """transformers 5 renames in memory, and writes the old names."""
    from safetensors.torch import load_file

    theirs = reference(*REFERENCES[family], TINY)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) != set(theirs.state_dict())
    model = make_model(family, TINY)
    on_disk, in_memory = import_weights(model, tensors), import_weights(model, theirs.state_dict())
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, on_disk, in_memory)))


@pytest.mark.parametrize("family, tokens", [("vit", 1), ("deit", 2)])
def test_the_mask_leaves_out_the_tokens_before_the_patches(family, tokens):
    model = make_model(family, TINY)
    hidden = np.random.default_rng(0).normal(size=(2, 9 + tokens, 24)).astype(np.float32)
    from tljax.models import get_family
    from tljax.models.heads import pool

    outputs = get_family(family).finish(model.config, {"hidden": hidden})
    assert np.allclose(pool(outputs, "mean"), hidden[:, tokens:].mean(axis=1), atol=1e-6)
    assert outputs["pooled"] is None


@pytest.mark.parametrize("family", REFERENCES)
def test_visible_patches_are_tokens_with_their_own_positions(family):
    model = make_model(family, {**TINY, **UNUSUAL["oblong image"]})  # 2 × 5 patches
    extra = model.config.extra_tokens
    variables = import_weights(model, reference(*REFERENCES[family], {**TINY, **UNUSUAL["oblong image"]}).state_dict())
    inputs, places = {"pixel_values": images(model)}, np.array([[7, 0, 3], [9, 2, 1]], np.int32)
    whole = run(model, variables, inputs)
    seen = run(model, variables, {**inputs, "visible": places})
    tokens = whole["hidden_states"][0]
    wanted = np.stack([np.concatenate([x[:extra], x[extra + at]]) for x, at in zip(tokens, places, strict=True)])
    np.testing.assert_array_equal(seen["hidden_states"][0], wanted)
    assert seen["hidden"].shape == (2, extra + 3, 24) and seen["mask"].sum() == 6 and seen["pyramid"] == ()
    every = run(model, variables, {**inputs, "visible": np.tile(np.arange(10), (2, 1))})
    np.testing.assert_allclose(every["hidden"], whole["hidden"], atol=1e-6)
    # The pixels of the patch in row 1, column 2 of the grid.
    np.testing.assert_array_equal(seen["patches"][1, 7], inputs["pixel_values"][1, 4:8, 8:12].reshape(-1))


@pytest.mark.parametrize(
    "visible",
    [np.zeros((2, 4), int), np.zeros((1, 10), int), np.zeros((1, 0), int), np.zeros(3, int), np.zeros((1, 3))],
    ids=["batch", "too many", "none", "rank", "type"],
)
def test_visible_patches_of_another_shape_are_refused(visible):
    with pytest.raises(UserError, match=r"`visible` has the shape .* integers of \(1, K\), K from 1 to the 9 patches"):
        FAMILY.start(configure(TINY), {"pixel_values": np.zeros((1, 12, 12, 3)), "visible": visible})


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"\(B, 12, 12, 3\).*adapt image_size or num_channels"):
        FAMILY.start(configure(TINY), {"pixel_values": np.zeros((1, 14, 12, 3))})
    with pytest.raises(UserError, match="no multiple of 5 heads"):
        configure({**TINY, "num_attention_heads": 5})
    with pytest.raises(UserError, match="larger than the image"):
        configure({**TINY, "patch_size": 16})
    with pytest.raises(UserError, match=r"image_size is \[1, 2, 3\]; it must be one size or two"):
        configure({**TINY, "image_size": [1, 2, 3]})


def test_defaults_are_those_of_transformers():
    for theirs, ours in ((ViTConfig(), configure({})), (DeiTConfig(), DEIT.configure({}))):
        for name in set(ours.__dataclass_fields__) - {"add_pooling_layer", "distilled", "pooler_output_size"}:
            value = getattr(ours, name)
            assert (value[0] if isinstance(value, tuple) else value) == getattr(theirs, name), name
        assert configure(theirs.to_dict(), distilled=ours.distilled).hidden_size == theirs.pooler_output_size
