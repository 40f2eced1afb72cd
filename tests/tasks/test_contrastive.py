"""Contrastive tasks against transformers' and sentence-transformers' losses, and what they measure and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.reference import make_model
from tljax import losses, metrics
from tljax.base.errors import UserError
from tljax.models.contrast import Contrast, scale_of
from tljax.tasks.contrastive import contrastive, embeddings, sentence_pairs
from tljax.tasks.spec import TaskSpec

RNG = np.random.default_rng(0)
B, D = 6, 5
CONFIG = make_model("clip", {}).config
SHAPES = {"text_embeds": jax.ShapeDtypeStruct((1, D), jnp.float32), "image_embeds": None}
SPEC = TaskSpec(None, "pooled", ("pooled", "mean"), Contrast(), family="clip", config=CONFIG, outputs=SHAPES)
TEXTS = TaskSpec(None, "pooled", ("pooled", "mean", "cls"), family="bert")


def unit(count=B):
    x = RNG.normal(size=(count, D)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def batch(group, padding=0):
    weight = np.ones(len(group), np.float32)
    weight[len(group) - padding :] = 0
    return {"inputs": {}, "targets": {"group": np.array(group, np.int32)}, "weight": weight}


def mean_loss(task, outputs, given):
    weights = task.weights(given)
    return jnp.sum(task.loss(outputs, task.targets(given)) * weights) / jnp.sum(weights)


def value_and_gradients(task, images, texts, raw, given):
    def run(images, texts, raw):
        head = {"params": {"logit_scale": raw}}
        return mean_loss(task, task.head.apply(head, {"image_embeds": images, "text_embeds": texts}), given)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(images, texts, jnp.float32(raw))


@pytest.mark.parametrize("padding", [0, 2])
def test_the_loss_of_clip_equals_transformers(padding):
    """Rows of padding are no negatives: the loss is that of the batch without them."""
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts, real = unit(), unit(), B - padding
    theirs = [torch.tensor(x[:real], requires_grad=True) for x in (images, texts)]
    raw = torch.tensor(2.0, requires_grad=True)
    wanted = image_text_contrastive_loss(theirs[1] @ theirs[0].T * raw.exp())
    wanted.backward()
    task = contrastive(SPEC, positives="pair")
    value, gradients = value_and_gradients(task, images, texts, 2.0, batch([-1] * B, padding))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    for ours, tensor in zip(gradients, (*theirs, raw), strict=True):
        ours = ours[:real] if ours.ndim else ours
        np.testing.assert_allclose(ours, tensor.grad.numpy(), atol=1e-6)
    assert not np.any(gradients[0][real:]) and not np.any(gradients[1][real:])


def test_rows_with_the_same_match_share_the_target():
    """Yang et al. 2022, in float64."""
    images, texts, groups = unit(), unit(), np.array([3, 1, 3, -1, -1, 1])
    scores = images.astype(np.float64) @ texts.T.astype(np.float64) * np.exp(1.0)
    match = (groups[:, None] == groups) & (groups >= 0) | np.eye(B, dtype=bool)

    def one_way(z):
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -(log_p * match).sum(axis=1) / match.sum(axis=1)

    wanted = np.mean((one_way(scores) + one_way(scores.T)) / 2)
    value, _ = value_and_gradients(contrastive(SPEC), images, texts, 1.0, batch(groups))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_ranking_loss_equals_sentence_transformers(symmetric):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    first, second = unit(), unit()
    a, b = (torch.tensor(x, requires_grad=True) for x in (first, second))
    ways = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    wanted = MultipleNegativesRankingLoss(model=None, scale=20.0, **ways).compute_loss_from_embeddings([a, b], None)
    wanted.backward()
    task = sentence_pairs(TEXTS, positives="pair", symmetric=symmetric)
    folded = np.stack([first, second], axis=1).reshape(2 * B, D)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: mean_loss(task, {"embedding": x}, batch([-1] * B))))(folded)
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    # Theirs normalises again, so that its gradient has no part along the embedding.
    gradient = np.asarray(gradient) - np.sum(gradient * folded, axis=1, keepdims=True) * folded
    np.testing.assert_allclose(gradient[0::2], a.grad.numpy(), atol=2e-6)
    np.testing.assert_allclose(gradient[1::2], b.grad.numpy(), atol=2e-6)


def test_the_scale_has_a_limit_that_lets_the_gradient_through():
    value, gradient = jax.value_and_grad(lambda raw: scale_of(raw, 100.0))(jnp.float32(6.0))
    np.testing.assert_allclose((value, gradient), (100.0, 100.0), rtol=1e-5)
    np.testing.assert_allclose(scale_of(jnp.float32(2.0), 100.0), np.exp(2.0), rtol=1e-6)


def test_a_batch_of_padding_alone_has_a_finite_loss():
    value = losses.in_batch_cross_entropy(jnp.ones((3, 3)), jnp.full(3, -1), jnp.zeros(3, bool))
    np.testing.assert_array_equal(value, np.zeros(3))


def test_retrieval_counts_ranks():
    """Ranks 1, 3, 2 and none, counted by hand; equal scores are no success."""
    items = np.eye(4, dtype=np.float32)
    queries = np.array([[9, 1, 1, 1], [5, 1, 4, 0], [0, 3, 2, 1], [1, 1, 1, 1]], np.float32)
    found = metrics.retrieval(queries, items, np.array([0, 1, 2, 7]), np.arange(4), prefix="x_")
    assert found["x_recall_at_1"] == 0.25 and found["x_recall_at_5"] == 0.75
    np.testing.assert_allclose(found["x_mean_reciprocal_rank"], (1 + 1 / 3 + 1 / 2 + 0) / 4)
    same = metrics.retrieval(np.ones((20, 2)), np.ones((20, 2)), np.arange(20), np.arange(20))
    assert same["recall_at_10"] == 0.0 and round(same["mean_reciprocal_rank"], 9) == 0.05
    twice = metrics.retrieval(np.eye(2), np.eye(2), np.array([0, 0]), np.array([0, 0]))
    assert twice["recall_at_1"] == 1.0


def test_retrieval_equals_a_sorted_list():
    queries, items = unit(30), unit(30)
    order = np.argsort(-(queries @ items.T), axis=1)
    rank = 1 + np.argmax(order == np.arange(30)[:, None], axis=1)
    found = metrics.retrieval(queries, items, np.arange(30), np.arange(30))
    assert found["recall_at_5"] == np.mean(rank <= 5)
    np.testing.assert_allclose(found["mean_reciprocal_rank"], np.mean(1 / rank))


def test_equal_texts_are_one_candidate():
    task = contrastive(SPEC)
    texts = unit(2)[[0, 1, 0, 1]]
    found = task.metrics({"image_embeds": texts, "text_embeds": texts}, {"match": np.array([4, 9, 4, 9])}, ())
    assert found["mean_recall"] == 1.0 and found["text_to_image_mean_reciprocal_rank"] == 1.0
    alone = contrastive(SPEC, positives="pair")
    found = alone.metrics({"image_embeds": texts, "text_embeds": texts}, {"match": np.full(4, -1)}, ())
    assert found["image_to_text_recall_at_1"] == 0.0 and found["image_to_text_recall_at_5"] == 1.0


def test_embeddings_are_lines():
    assert embeddings({"a": np.array([[0.12345678, 1.0]]), "b": np.array([[2.0]])}) == [
        {"a": [0.123457, 1.0], "b": [2.0]}
    ]


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="images and texts, and bert is none"):
        contrastive(TEXTS)
    with pytest.raises(UserError, match="Did you mean 'text'"):
        contrastive(SPEC, positives="texts")
    with pytest.raises(UserError, match="relevant is 'lable'"):
        contrastive(SPEC, relevant="lable")
    with pytest.raises(UserError, match="no text for 'b'"):
        contrastive(SPEC._replace(classes=("a", "b")), captions={"a": "one"})
    with pytest.raises(UserError, match=r"max_scale is 0\.5"):
        contrastive(SPEC, max_scale=0.5)
    with pytest.raises(UserError, match="temperature is 0"):
        sentence_pairs(TEXTS, temperature=0)
    with pytest.raises(UserError, match="carries no tokenizer"):
        sentence_pairs(TEXTS).prepare(None, None)
    task, given = sentence_pairs(TEXTS), {**batch([1, 2]), "inputs": {"input_ids": np.zeros((2, 7))}}
    with pytest.raises(UserError, match=r"input_ids has the shape \(2, 7\)"):
        task.inputs(given)
