"""CLIP against transformers."""

import numpy as np
import pytest
import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from tests.models.reference import distance, import_weights, leaf_shapes, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.base.weights import their_shapes
from tljax.models.clip import FAMILY, TEXT, VISION, configure

WORDS = dict(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=36,
    max_position_embeddings=12,
    projection_dim=10,
    eos_token_id=39,
)
IMAGES = dict(
    hidden_size=20,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=30,
    image_size=12,
    patch_size=4,
    projection_dim=10,
)

UNUSUAL = {
    "plain": {},
    "gelu, another epsilon": dict(
        text_config=dict(hidden_act="gelu", layer_norm_eps=0.1), vision_config=dict(hidden_act="gelu")
    ),
    "end token by its largest id, one layer, remainder of pixels": dict(
        text_config=dict(eos_token_id=2, num_hidden_layers=1),
        vision_config=dict(image_size=14, num_channels=1, num_hidden_layers=1),
    ),
    "end token in the middle of the ids": dict(
        text_config=dict(eos_token_id=7), logit_scale_init_value=0.5, projection_dim=3
    ),
}


def entries_of(case: str) -> dict:
    others = UNUSUAL[case]
    return {
        "projection_dim": 10,
        **others,
        "text_config": {**WORDS, **others.get("text_config", {})},
        "vision_config": {**IMAGES, **others.get("vision_config", {})},
    }


def batch(entries: dict) -> dict[str, np.ndarray]:
    """Four texts of 9, 5, 3 and 1 tokens with their end tokens and what stands behind; three images."""
    generator = np.random.default_rng(0)
    text, vision = entries["text_config"], entries["vision_config"]
    ids = generator.integers(8, 39, (4, 9)).astype(np.int32)
    lengths = np.array([9, 5, 3, 1])
    ids[np.arange(4), lengths - 1] = 39 if text["eos_token_id"] == 2 else text["eos_token_id"]
    mask = (np.arange(9)[None] < lengths[:, None]).astype(np.int32)
    shape = (3, vision["image_size"], vision["image_size"], vision.get("num_channels", 3))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": generator.normal(size=shape).astype(np.float32),
    }


def reference(entries: dict):
    torch.manual_seed(0)
    config = CLIPConfig(**entries)
    for part in (config.text_config, config.vision_config):
        part.initializer_factor = 3.0
    theirs = CLIPModel(config).eval()
    random_norms(theirs)
    return theirs


def theirs_on(theirs, inputs: dict):
    arrays = {k: torch.from_numpy(v) for k, v in inputs.items()}
    arrays = {k: v.permute(0, 3, 1, 2) if k == "pixel_values" else v.long() for k, v in arrays.items()}
    with torch.no_grad():
        return theirs(**arrays, output_hidden_states=True)


@pytest.mark.parametrize("case", UNUSUAL)
def test_equals_the_reference(case):
    entries = entries_of(case)
    theirs = reference(entries)
    model = make_model("clip", entries, "CLIPModel")
    variables = import_weights(model, theirs.state_dict(), architecture="CLIPModel")
    inputs = batch(entries)
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    for wing in ("text", "vision"):
        part = wanted[f"{wing}_model_output"]
        states = ours[f"{wing}_hidden_states"]
        assert len(states) == len(part.hidden_states) == entries[f"{wing}_config"]["num_hidden_layers"] + 1
        for a, b in zip(states, part.hidden_states, strict=True):
            # Behind its end a text is padding, whose states no one reads.
            read = inputs["attention_mask"][..., None] if wing == "text" else 1
            assert distance(a * read, b * torch.as_tensor(read)) <= 1e-5
        assert distance(ours[f"{wing}_hidden"], part.last_hidden_state) <= 1e-5
    for name in ("text_embeds", "image_embeds", "logits_per_image", "logits_per_text"):
        assert distance(ours[name], wanted[name]) <= 1e-5, name
    assert FAMILY.heads["CLIPModel"].matches(model.head)


def test_one_wing_alone_gives_what_it_gives_beside_the_other():
    entries = entries_of("plain")
    theirs = reference(entries)
    model = make_model("clip", entries, "CLIPModel")
    variables = import_weights(model, theirs.state_dict(), architecture="CLIPModel")
    inputs = batch(entries)
    both = run(model, variables, inputs)
    texts = run(model, variables, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    images = run(model, variables, {"pixel_values": inputs["pixel_values"]})
    assert np.allclose(texts["text_embeds"], both["text_embeds"], atol=1e-6)
    assert np.allclose(images["image_embeds"], both["image_embeds"], atol=1e-6)
    assert "vision_hidden_states" not in texts and "text_hidden_states" not in images
    assert np.array_equal(texts["hidden"], texts["text_hidden"]) and np.array_equal(
        texts["pooled"], texts["text_pooled"]
    )
    assert np.array_equal(both["hidden"], both["vision_hidden"]) and np.all(both["mask"].sum(axis=1) == 9)
    assert "logits_per_image" not in texts and np.allclose(images["scale"], np.exp(2.6592), rtol=1e-5)


@pytest.mark.parametrize("wing, family", [("Text", TEXT), ("Vision", VISION)])
def test_a_tower_alone_equals_the_reference(wing, family):
    part = wing.lower()
    entries = entries_of("plain")[f"{part}_config"]
    name = f"CLIP{wing}ModelWithProjection"
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(getattr(transformers, f"CLIP{wing}Config")(**entries)).eval()
    random_norms(theirs)
    model = make_model(family.name, entries, name)
    variables = import_weights(model, theirs.state_dict(), prefix=f"{part}_model.", architecture=name)
    inputs = batch(entries_of("plain"))
    keys = ("pixel_values",) if part == "vision" else ("input_ids", "attention_mask")
    inputs = {key: inputs[key] for key in keys}
    embeds = "image_embeds" if part == "vision" else "text_embeds"
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    assert distance(ours[embeds], wanted[embeds]) <= 1e-5
    assert distance(ours["hidden"], wanted.last_hidden_state) <= 1e-5


def test_wrong_inputs_are_refused():
    config = configure(entries_of("plain"))
    with pytest.raises(UserError, match="reads `input_ids` or `pixel_values`, and the inputs are: input_values"):
        FAMILY.start(config, {"input_values": np.zeros((1, 2))})
    with pytest.raises(UserError, match="13 tokens, and the model has 12 positions"):
        FAMILY.start(config, {"input_ids": np.zeros((1, 13), np.int32)})
    with pytest.raises(UserError, match="attention_mask has the shape"):
        FAMILY.start(config, {"input_ids": np.zeros((1, 3), np.int32), "attention_mask": np.zeros((1, 2))})
    with pytest.raises(UserError, match=r"reads \(B, 12, 12, 3\)"):
        FAMILY.start(config, {"pixel_values": np.zeros((1, 8, 8, 3))})


def test_what_is_not_implemented_is_refused():
    with pytest.raises(UserError, match="Did you mean 'quick_gelu'"):
        configure({"text_config": {"hidden_act": "quik_gelu"}})
    with pytest.raises(UserError, match="text: hidden_size 24 is no multiple of 5 heads"):
        configure({"text_config": {**WORDS, "num_attention_heads": 5}})
    with pytest.raises(UserError, match=r"vision: image_size is .*square"):
        configure({"vision_config": {**IMAGES, "image_size": [12, 16]}})
    with pytest.raises(UserError, match="a patch of"):
        configure({"vision_config": {**IMAGES, "image_size": 2}})
    with pytest.raises(UserError, match="text_config is 'small'"):
        configure({"text_config": "small"})


def test_config_json_of_transformers_is_read():
    entries = entries_of("gelu, another epsilon")
    assert configure(CLIPConfig(**entries).to_dict()) == configure(entries)
    assert configure({}) == configure(CLIPConfig().to_dict())
    old = {"text_config": {"hidden_size": 512}, "text_config_dict": {"hidden_size": 640, "num_attention_heads": 10}}
    assert configure(old).text_config.hidden_size == CLIPConfig(**old).text_config.hidden_size == 640


@pytest.mark.parametrize("variant", FAMILY.variants)
def test_variants_have_the_shapes_of_the_reference(variant):
    """One layer of each tower: the layers are equal, and dozens of them take long to build."""
    entries = dict(FAMILY.variants[variant])
    for part in ("text_config", "vision_config"):
        entries[part] = {**entries[part], "num_hidden_layers": 1}
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**entries)).state_dict()
    model = make_model("clip", entries)
    shapes, expected = leaf_shapes(model), {}
    for entry in FAMILY.table(model.config, "").rows:
        expected.update(zip(entry.theirs, their_shapes(entry, shapes), strict=True))
    assert {name: tuple(x.shape) for name, x in theirs.items() if name != "logit_scale"} == expected


def test_published_parameter_count():
    """As the hub counts openai/clip-vit-base-patch32: all but the scale of the logits."""
    shapes = leaf_shapes(make_model("clip", FAMILY.variants["clip-vit-base-patch32"]))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 151_277_313 - 1
