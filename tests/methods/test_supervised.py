"""Supervised learning: the weighted loss, label smoothing and mixup."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.supervised import mix, supervised
from tljax.tasks.classification import classification
from tljax.tasks.regression import regression
from tljax.tasks.similarity import similarity
from tljax.tasks.spec import TaskSpec

SPEC = TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",))
TASK = classification(SPEC)
RNG = np.random.default_rng(0)
B = 8
KEY = jax.random.key(3)
PARAMS = {"kernel": jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)}
BATCH = {
    "inputs": {"pixel_values": RNG.normal(size=(B, 2, 2, 3)).astype(np.float32)},
    "targets": RNG.integers(0, 3, B).astype(np.int32),
    "weight": np.array([1, 2, 1, 0.5, 1, 1, 0, 0], np.float32),
}
TOKENS = {**BATCH, "inputs": {"input_ids": np.ones((B, 4), np.int32), "attention_mask": np.ones((B, 4), np.int32)}}


def forward(params, state, inputs, rng, *, train=True):
    x = inputs["pixel_values"].reshape(inputs["pixel_values"].shape[0], -1)
    return {"logits": x @ params["kernel"]}, {**state, "calls": state.get("calls", 0) + 1}


def value(method, batch=BATCH, params=PARAMS, key=KEY):
    losses, state, metrics = method.loss(params, {}, {"train": batch}, key, 0)
    assert state == {"calls": 1}
    (loss,) = losses.values()
    return loss, metrics


def test_the_table_leads_here():
    assert lookup(TABLE, "supervised", what="method") is supervised


def test_the_loss_is_a_weighted_sum_and_its_weight():
    logits, _ = forward(PARAMS, {}, BATCH["inputs"], None)
    each = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits["logits"])), torch.tensor(BATCH["targets"]).long(), reduction="none"
    )
    loss, metrics = value(supervised(forward, TASK))
    np.testing.assert_allclose(loss.sum, (each.numpy() * BATCH["weight"]).sum(), rtol=1e-5)
    assert loss.weight == BATCH["weight"].sum()
    right = np.asarray(logits["logits"]).argmax(1)[:6] == BATCH["targets"][:6]
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-6)


def test_padding_has_no_part_in_the_gradient():
    def gradient(batch, **options):
        return jax.grad(lambda p: value(supervised(forward, TASK, **options), batch, p)[0].sum)(PARAMS)["kernel"]

    other = {**BATCH, "inputs": {"pixel_values": BATCH["inputs"]["pixel_values"].copy()}}
    other["inputs"]["pixel_values"][6:] = 99.0
    for options in ({}, {"label_smoothing": 0.1}, {"mixup": 0.5}):
        np.testing.assert_array_equal(gradient(BATCH, **options), gradient(other, **options))


def test_label_smoothing_equals_torch():
    batch = {**BATCH, "weight": np.ones(B, np.float32)}
    logits, _ = forward(PARAMS, {}, batch["inputs"], None)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits["logits"])),
        torch.tensor(batch["targets"]).long(),
        label_smoothing=0.2,
        reduction="sum",
    )
    loss, _ = value(supervised(forward, TASK, label_smoothing=0.2), batch)
    np.testing.assert_allclose(loss.sum, theirs.item(), rtol=1e-5)


# --- mixup


def test_mixing_is_one_share_a_batch_and_keeps_the_weight():
    eye = jnp.eye(B)
    _, targets, weights = mix(KEY, {}, jax.nn.one_hot(BATCH["targets"], 3), jnp.asarray(BATCH["weight"]), 1.0)
    inputs, _, _ = mix(KEY, {"x": eye}, eye, jnp.ones(B), 1.0)
    shares = np.unique(np.round(np.asarray(inputs["x"])[np.asarray(inputs["x"]) > 0], 5))
    assert len(shares) <= 3  # λ, 1 − λ, and 1 where an example meets itself
    np.testing.assert_allclose(inputs["x"].sum(0), 1, rtol=1e-5)  # a permutation
    np.testing.assert_allclose(inputs["x"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(), BATCH["weight"].sum(), rtol=1e-6)
    np.testing.assert_array_equal(weights[6:], 0)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_inputs_and_targets_are_mixed_alike():
    inputs, targets, _ = mix(KEY, {"x": jnp.eye(B)}, jnp.eye(B), jnp.ones(B), 0.4)
    np.testing.assert_allclose(inputs["x"], targets, rtol=1e-6)
    assert (np.asarray(targets) % 1 != 0).any()


def test_the_mixed_loss_is_the_weighted_loss_against_both_labels():
    weights = jnp.asarray(BATCH["weight"])
    mixed, targets, total = mix(KEY, BATCH["inputs"], TASK.targets(BATCH), weights, 0.7)
    positions, _, _ = mix(KEY, {"x": jnp.eye(B)}, TASK.targets(BATCH), weights, 0.7)
    outputs, _ = forward(PARAMS, {}, mixed, None)
    each = -jax.nn.log_softmax(outputs["logits"])[:, BATCH["targets"]]  # (mixed example, label of j)
    expected = jnp.sum(positions["x"] * each * weights)
    np.testing.assert_allclose(jnp.sum(TASK.loss(outputs, targets) * total), expected, rtol=1e-5)


def test_mixup_is_a_function_of_the_key():
    method = supervised(forward, TASK, mixup=0.5)
    first, again, other = (value(method, key=jax.random.key(k))[0].sum for k in (0, 0, 1))
    assert first == again != other
    assert not value(method)[1]


def test_the_share_follows_the_beta_distribution():
    keys = jax.random.split(KEY, 2000)
    two = jax.vmap(lambda key: mix(key, {"x": jnp.eye(2)}, jnp.eye(2), jnp.ones(2), 0.3)[0]["x"])(keys)
    swapped = np.asarray(two[:, 0, 0])[np.asarray(two[:, 0, 0]) < 0.999999]
    # Half of the pairs swap; those that do share as Beta(0.3, 0.3) says: mean 1/2, variance 1 / (4 · 1.6).
    assert abs(swapped.mean() - 0.5) < 0.05
    assert abs(swapped.var() - 1 / 6.4) < 0.02


def test_an_attention_mask_becomes_the_union():
    mask = jnp.asarray([[1, 0, 0], [1, 1, 1]])
    values = jnp.asarray([[1.0, 0, 0], [1, 1, 1]])
    for key in jax.random.split(KEY, 8):
        mixed, _, _ = mix(key, {"input_values": values, "attention_mask": mask}, jnp.eye(2), jnp.ones(2), 1.0)
        assert (np.asarray(mixed["attention_mask"]) >= (np.asarray(mixed["input_values"]) > 1e-6)).all()


# --- what does not fit


@pytest.mark.parametrize(
    ("task", "batch", "options", "message"),
    [
        (TASK, TOKENS, {"mixup": 0.2}, "input_ids hold ids"),
        (regression(SPEC), {**BATCH, "targets": np.ones(B, np.float32)}, {"label_smoothing": 0.1}, "label_smoothing"),
        (TASK, {k: v for k, v in BATCH.items() if k != "targets"}, {}, "needs labels"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_the_step(task, batch, options, message):
    with pytest.raises(UserError, match=message):
        value(supervised(forward, task, **options), batch)


def test_options_out_of_range_are_refused_together():
    with pytest.raises(UserError, match=r"label_smoothing is 1.0(.|\n)*mixup is -1"):
        supervised(forward, TASK, label_smoothing=1.0, mixup=-1)


def test_other_tasks_train_too():
    pairs = {
        "inputs": {"pixel_values": RNG.normal(size=(B, 2, 2, 2, 3)).astype(np.float32)},
        "targets": RNG.random(B).astype(np.float32),
        "weight": np.ones(B, np.float32),
    }

    def embed(params, state, inputs, rng, *, train=True):
        outputs, state = forward(params, state, inputs, rng)
        return {"embedding": outputs["logits"], "logits": outputs["logits"][:, :1]}, state

    scores = {**BATCH, "targets": pairs["targets"]}
    for task, batch in ((similarity(SPEC), pairs), (regression(SPEC), scores)):
        for options in ({}, {"mixup": 0.5}):
            method = supervised(embed, task, **options)
            loss, metrics = jax.jit(lambda p, m=method, b=batch: value(m, b, p))(PARAMS)
            assert np.isfinite(loss.sum)
            assert not metrics
