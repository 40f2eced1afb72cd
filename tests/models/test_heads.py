"""Heads and their formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.reference import distance
from tljax.models import FAMILIES, get_family
from tljax.models.formats import describe_labels, label_count
from tljax.models.heads import Classifier, DistilledClassifier, Embedding, LanguageModel, normalize, pool


def test_mean_pooling_ignores_what_the_mask_leaves_out():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    outputs = {"hidden": hidden, "mask": jnp.asarray([[1, 1, 0, 0], [0, 0, 0, 0]])}
    pooled = pool(outputs, "mean")
    assert np.allclose(pooled[0], hidden[0, :2].mean(axis=0), atol=1e-6)
    assert np.array_equal(pooled[1], np.zeros(3))


def test_pooling_of_maps_and_first_tokens():
    maps = jnp.arange(24.0).reshape(1, 2, 3, 4)
    assert np.allclose(pool({"hidden": maps}, "mean"), maps.reshape(1, 6, 4).mean(axis=1))
    assert np.array_equal(pool({"hidden": maps.reshape(1, 6, 4)}, "cls"), maps[:, 0, 0])


def test_normalisation_equals_torch_and_has_a_gradient_at_zero():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert distance(normalize(jnp.asarray(x)), torch.nn.functional.normalize(torch.from_numpy(x))) <= 1e-6
    gradient = jax.grad(lambda x: jnp.sum(normalize(x)))(jnp.zeros((1, 5)))
    assert np.all(np.isfinite(gradient))


def test_a_classifier_starts_at_zero_or_with_the_published_deviation():
    outputs = {"pooled": jnp.ones((1, 400))}
    zero = Classifier(50).init(jax.random.key(0), outputs)["params"]["out"]
    assert not np.any(zero["kernel"]) and zero["bias"].shape == (50,)
    normal = Classifier(50, start="normal").init(jax.random.key(0), outputs)["params"]["out"]["kernel"]
    # 0.02 before truncation at two deviations is 0.0176 after it.
    assert 0.015 < float(jnp.std(normal)) <= 0.02


def test_a_head_computes_in_the_dtype_of_its_parameters():
    outputs = {"pooled": jnp.ones((2, 8), jnp.bfloat16)}
    head = Classifier(3, start="normal")
    variables = head.init(jax.random.key(0), outputs)
    assert head.apply(variables, outputs)["logits"].dtype == jnp.float32
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    assert head.apply(half, outputs)["logits"].dtype == jnp.bfloat16


def test_dropout_of_a_head_needs_training():
    outputs = {"pooled": jnp.ones((2, 64))}
    head = Classifier(3, dropout=0.5, start="normal")
    variables = head.init(jax.random.key(0), outputs)
    still = head.apply(variables, outputs)["logits"]
    moved = head.apply(variables, outputs, True, rngs={"dropout": jax.random.key(0)})["logits"]
    assert not np.allclose(still, moved)


def test_an_embedding_has_length_one():
    outputs = {"hidden": jnp.ones((2, 3, 4)), "mask": jnp.ones((2, 3))}
    assert np.allclose(jnp.linalg.norm(Embedding().apply({}, outputs)["embedding"], axis=-1), 1)


@pytest.mark.parametrize(
    "entries, count",
    [({}, 2), ({"num_labels": 4}, 4), ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3), ({"id2label": {"0": "x"}}, 1)],
)
def test_label_count(entries, count):
    assert label_count(entries) == count


def test_labels_are_described_as_transformers_reads_them():
    from transformers import BertConfig

    config = BertConfig(**describe_labels(Classifier(3), ["joy", "fear", "rage"]))
    assert config.num_labels == 3 and config.id2label == {0: "joy", 1: "fear", 2: "rage"}
    assert config.label2id == {"joy": 0, "fear": 1, "rage": 2}
    assert BertConfig(**describe_labels(Classifier(1), None)).problem_type == "regression"
    assert label_count(describe_labels(Classifier(7), None)) == 7


def test_a_format_matches_the_heads_that_it_reads_and_no_others():
    for family in map(get_family, FAMILIES):
        config = family.configure({})
        for name, form in family.heads.items():
            assert name == form.architecture + (f" ({form.spelling})" if form.spelling else "")
            head = form.head(config, {"num_labels": 3})
            assert not isinstance(head, Classifier) or head.classes == 3
            rivals = {n: other for n, other in family.heads.items() if other.spelling == form.spelling}
            assert [n for n, other in rivals.items() if other.matches(head)] == [name]
            assert not form.matches(Embedding())
            assert not form.matches(Classifier(3, normalize=True))
    bert, deit = get_family("bert").heads, get_family("deit").heads
    assert not bert["BertForSequenceClassification"].matches(Classifier(3, pool="mean"))
    assert not deit["DeiTForImageClassification"].matches(DistilledClassifier(3))


def test_the_last_token_is_the_last_that_the_mask_marks():
    hidden = jnp.arange(24, dtype=jnp.float32).reshape(3, 4, 2)
    mask = jnp.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    found = pool({"hidden": hidden, "mask": mask}, "last")
    assert np.array_equal(found, hidden[jnp.arange(3), jnp.asarray([3, 1, 3])])


@pytest.mark.parametrize(
    "head",
    [
        LanguageModel(7, tied=False),
        LanguageModel(7, bias=True, scale=0.5),
        LanguageModel(7, transform="relu", transform_bias=False),
    ],
)
def test_a_lazy_language_model_gives_what_makes_its_logits(head):
    keys = iter(jax.random.split(jax.random.key(0), 9))
    outputs = {"hidden": jax.random.normal(next(keys), (2, 3, 5))}
    if head.tied:
        outputs["word_embeddings"] = jax.random.normal(next(keys), (7, 5))
    variables = head.init(next(keys), outputs)
    variables = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), variables)
    logits = head.apply(variables, outputs)["logits"]
    lazy = head.clone(lazy=True).apply(variables, outputs)
    made = lazy["features"] @ lazy["output_embedding"].T
    made = made if lazy["output_bias"] is None else made + lazy["output_bias"]
    assert logits.shape == (2, 3, 7) and "logits" not in lazy and np.allclose(logits, made, atol=1e-5)
    if not head.tied:
        kernel = variables["params"]["out"]["kernel"]
        assert kernel.shape == (5, 7) and np.allclose(logits, outputs["hidden"] @ kernel, atol=1e-5)
