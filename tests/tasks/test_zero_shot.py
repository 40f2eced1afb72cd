"""Zero-shot classification against transformers' own embeddings of the prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.clip_files import save_clip
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.models.forward import forward, init_variables
from tljax.models.heads import Embedding
from tljax.tasks.spec import TaskSpec
from tljax.tasks.zero_shot import zero_shot

CLASSES = ("red", "green_digit", "blue")
TEMPLATES = ("a photo of a {}", "the bad {} drawing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pretrained(folder):
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def spec(pretrained):
    model = pretrained.model
    names = {"text_embeds": None, "image_embeds": None}
    return TaskSpec(CLASSES, "pooled", ("pooled",), model.head, family="clip", config=model.config, outputs=names)


def theirs(folder):
    from transformers import AutoTokenizer, CLIPModel

    return CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("templates", [TEMPLATES[0], TEMPLATES])
def test_the_head_and_its_probabilities_equal_transformers(folder, pretrained, spec, templates):
    reference, tokenizer = theirs(folder)
    task = zero_shot(spec, templates=templates, names={"green_digit": "green"})
    head = task.fill(pretrained.model, pretrained.variables, pretrained.processor)
    listed = (templates,) if isinstance(templates, str) else templates
    rows = []
    with torch.no_grad():
        for name in ("red", "green", "blue"):
            inputs = tokenizer([t.replace("{}", name) for t in listed], padding=True, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            each = torch.nn.functional.normalize(reference.get_text_features(**inputs).pooler_output)
            rows.append(torch.nn.functional.normalize(each.mean(dim=0), dim=0))
        pixels = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
        images = reference.get_image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        images = torch.nn.functional.normalize(images)
        wanted = torch.softmax(images @ torch.stack(rows).T * reference.logit_scale.exp(), dim=1)
    np.testing.assert_allclose(head["kernel"], torch.stack(rows).T, atol=1e-5)
    model = pretrained.model._replace(head=task.head)
    params = {"backbone": pretrained.variables["params"]["backbone"], "head": head}
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]["head"]
    assert jax.tree.map(jnp.shape, head) == jax.tree.map(jnp.shape, shapes)
    outputs, _ = jax.jit(lambda p, x: forward(model, {"params": p}, {"pixel_values": x}))(params, pixels)
    predicted = task.predict(outputs)
    np.testing.assert_allclose(predicted["probabilities"], wanted, atol=1e-5)
    found = task.metrics(predicted, wanted.numpy().argmax(axis=1), ())
    assert found["accuracy"] == 1.0
    line = task.decode(predicted, ())[0]
    assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_whole_prompts_take_the_place_of_templates(pretrained, spec):
    given = (pretrained.model, pretrained.variables, pretrained.processor)
    whole = {name: [t.replace("{}", name) for t in TEMPLATES] for name in CLASSES}
    by_prompts = zero_shot(spec, prompts=whole).fill(*given)
    by_templates = zero_shot(spec, templates=TEMPLATES, names={name: name for name in CLASSES}).fill(*given)
    np.testing.assert_array_equal(by_prompts["kernel"], by_templates["kernel"])


def test_the_head_can_be_trained_on(pretrained, spec):
    task = zero_shot(spec, templates=TEMPLATES)
    head = task.fill(pretrained.model, pretrained.variables, pretrained.processor)
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(6, 10)), jnp.float32)
    given = {"inputs": {}, "targets": jnp.array([0, 1, 2, 0, 1, 2]), "weight": jnp.ones(6)}

    def loss(params):
        return jnp.mean(task.loss(task.head.apply({"params": params}, {"image_embeds": embeds}), task.targets(given)))

    before, gradient = jax.jit(jax.value_and_grad(loss))(head)
    after = loss(jax.tree.map(lambda x, g: x - 0.01 * g, head, gradient))
    assert after < before and all(np.any(g) for g in jax.tree.leaves(gradient))


def test_only_the_images_are_read(pretrained, spec):
    _, processor = zero_shot(spec).prepare(None, pretrained.processor)
    record = {"id": 0, "image": np.zeros((9, 9), np.uint8), "text": "red", "label": 1}
    assert set(processor.example(record)) == {"pixel_values"}


def test_what_does_not_fit_is_refused(pretrained, spec):
    with pytest.raises(UserError) as error:
        zero_shot(spec, templates=("a photo", "{} and {}", "{}"), names={"rde": "red"}, max_scale=0)
    message = str(error.value)
    assert "'a photo' must hold one {}" in message and "'{} and {}' must hold one {}" in message
    assert "Did you mean 'red'" in message and "max_scale is 0" in message
    with pytest.raises(UserError) as error:
        zero_shot(spec, prompts={"red": "a", "green": ("b",), "blue": ()})
    message = str(error.value)
    assert "Did you mean 'green_digit'" in message and "no text for 'blue'" in message
    with pytest.raises(UserError, match="equally many"):
        zero_shot(spec, prompts={"red": "a", "green_digit": ("b", "c"), "blue": "d"})
    with pytest.raises(UserError, match="There are no templates"):
        zero_shot(spec, templates=())
    with pytest.raises(UserError, match="needs data with classes"):
        zero_shot(spec._replace(classes=None))
    with pytest.raises(UserError, match="images and texts, and vit is none"):
        zero_shot(spec._replace(outputs={}, family="vit"))
    with pytest.raises(UserError, match="carries neither"):
        zero_shot(spec).prepare(None, None)
    with pytest.raises(UserError, match="only a ImageProcessor"):
        zero_shot(spec).prepare(None, pretrained.processor.images)


def test_a_checkpoint_without_its_scale_starts_from_the_configs(pretrained, spec):
    model = pretrained.model._replace(head=Embedding("pooled"))
    head = zero_shot(spec).fill(model, pretrained.variables, pretrained.processor)
    np.testing.assert_allclose(head["logit_scale"], 2.6592, rtol=1e-6)
