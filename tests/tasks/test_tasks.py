"""Tasks: heads, targets, losses, predictions and metrics on a tower's outputs, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy import stats

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.models.heads import Classifier, Embedding
from tljax.tasks import TABLE
from tljax.tasks.classification import classification
from tljax.tasks.regression import regression
from tljax.tasks.similarity import similarity
from tljax.tasks.spec import TaskSpec

CLASSES = ("cat", "dog", "owl")
SPEC = TaskSpec(classes=CLASSES, own_pool="pooled", pools=("pooled", "cls", "mean"), dropout=0.1)
RNG = np.random.default_rng(0)
B, T, D = 6, 4, 5
OUTPUTS = {
    "hidden": jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32),
    "pooled": jnp.asarray(RNG.normal(size=(B, D)), jnp.float32),
    "mask": jnp.asarray([[1] * 4, [1] * 3 + [0]] * 3),
}
BATCH = {
    "inputs": {"input_ids": np.zeros((B, T), np.int32)},
    "targets": np.array([0, 1, 2, 1, 0, 2], np.int32),
    "weight": np.array([1, 2, 1, 1, 1, 0], np.float32),
}


def apply(task, seed=0):
    """The outputs with the task's head on them, its parameters random."""
    params = task.head.init(jax.random.key(seed), OUTPUTS).get("params", {})
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(seed), x.shape), params)
    return task.head.apply({"params": params}, OUTPUTS)


def test_the_table_leads_to_tasks_that_share_the_contract():
    for name in TABLE:
        try:
            task = lookup(TABLE, name, what="task")(SPEC, **({"tasks": {}} if name == "several" else {}))
        except UserError:  # of another kind of backbone, or without its tokenizer: its own tests make it
            assert name not in ("classification", "regression", "similarity", "sentence_pairs")
            continue
        assert task.name == name
        assert task.uses in ("hidden", "pooled")
        assert task.main[1] in ("min", "max")
        hash(task.head)


def test_classification_loss_and_gradient_equal_torch():
    task = classification(SPEC)
    logits = apply(task)["logits"]
    tensor = torch.tensor(np.asarray(logits), requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(tensor, torch.tensor(BATCH["targets"]).long(), reduction="none")
    theirs = (theirs * torch.tensor(BATCH["weight"])).sum()
    theirs.backward()

    def ours(logits):
        return jnp.sum(task.loss({"logits": logits}, task.targets(BATCH)) * task.weights(BATCH))

    value, gradient = jax.value_and_grad(ours)(logits)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-6)


def test_classification_predicts_measures_and_decodes():
    task = classification(SPEC, pool="mean")
    predictions = jax.device_get(jax.jit(task.predict)(apply(task)))
    assert predictions["label"].dtype == np.int32
    np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, rtol=1e-6)
    found = task.metrics(predictions, BATCH["targets"], ())
    assert found[task.main[0]] == sklearn.metrics.accuracy_score(BATCH["targets"], predictions["label"])
    one = task.decode(predictions, ())[0]
    assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    assert list(one["probabilities"]) == list(CLASSES)


@pytest.mark.parametrize(
    ("pool", "uses"), [("own", "pooled"), ("pooled", "pooled"), ("cls", "hidden"), ("mean", "hidden")]
)
def test_the_head_reads_what_the_task_says(pool, uses):
    task = classification(SPEC, pool=pool)
    assert task.uses == uses
    gradient = jax.grad(
        lambda outputs: task.head.apply(
            {"params": {"out": {"kernel": jnp.ones((D, 3)), "bias": jnp.zeros(3)}}}, outputs
        )["logits"].sum()
    )
    used = gradient({k: v.astype(jnp.float32) for k, v in OUTPUTS.items()})
    assert {name for name in ("hidden", "pooled") if used[name].any()} == {uses}


def test_the_options_reach_the_head():
    assert classification(SPEC).head == Classifier(3, "pooled", False, 0.1, "zeros")
    task = classification(SPEC, pool="cls", normalize=True, dropout=0.0, init="normal")
    assert task.head == Classifier(3, "cls", True, 0.0, "normal")


def test_a_zero_head_starts_from_the_uniform_distribution():
    task = classification(SPEC)
    params = task.head.init(jax.random.key(0), OUTPUTS)
    np.testing.assert_allclose(task.predict(task.head.apply(params, OUTPUTS))["probabilities"], 1 / 3, rtol=1e-6)


def test_the_checkpoints_own_head():
    own = Classifier(3, "cls")
    task = classification(SPEC._replace(head=own), head="own")
    assert task.head is own
    assert task.uses == "hidden"
    with pytest.raises(UserError, match="has 10 classes and the data have 3"):
        classification(SPEC._replace(head=Classifier(10)), head="own")
    with pytest.raises(UserError, match="no classifier: it has no head"):
        classification(SPEC, head="own")
    with pytest.raises(UserError, match="no classifier: its head is a Embedding"):
        classification(SPEC._replace(head=Embedding()), head="own")


def test_several_labels():
    task = classification(SPEC, labels="multi", pool="mean", threshold=0.4)
    batch = {**BATCH, "targets": (RNG.random((B, 3)) < 0.5).astype(np.float32)}
    outputs = apply(task)
    assert task.loss(outputs, task.targets(batch)).shape == task.weights(batch).shape == (B,)
    predictions = jax.device_get(task.predict(outputs))
    np.testing.assert_array_equal(predictions["labels"], predictions["probabilities"] >= 0.4)
    found = task.metrics(predictions, batch["targets"], ())
    expected = sklearn.metrics.f1_score(batch["targets"], predictions["labels"], average="micro")
    assert found[task.main[0]] == pytest.approx(expected)
    decoded = task.decode({"labels": np.array([[1, 0, 1]]), "probabilities": np.array([[0.9, 0.1, 1 / 3]])}, ())[0]
    assert decoded == {"labels": ["cat", "owl"], "probabilities": {"cat": 0.9, "dog": 0.1, "owl": 0.333333}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "config.task.pool is 'max'"),
        ({"pool": "men"}, "Did you mean 'mean'"),
        ({"init": "zero"}, "Did you mean 'zeros'"),
        ({"labels": "many"}, "Accepted: multi, single"),
        ({"head": "old"}, "config.task.head is 'old'. Accepted: new, own"),
        ({"dropout": 1.0}, "config.task.dropout is 1.0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        classification(SPEC, **options)


def test_a_pooling_that_the_tower_lacks_is_refused():
    with pytest.raises(UserError, match=r"config\.task\.pool is 'cls'.*Accepted: mean, own, pooled"):
        classification(SPEC._replace(pools=("mean", "pooled")), pool="cls")


def test_classification_needs_classes():
    with pytest.raises(UserError, match="needs data with classes"):
        classification(SPEC._replace(classes=None))


def test_a_padding_row_gives_no_nan_to_a_normalised_head():
    task = classification(SPEC, pool="mean", normalize=True)

    def loss(hidden):
        outputs = task.head.apply({"params": params}, {**OUTPUTS, "hidden": hidden, "mask": jnp.zeros((B, T))})
        return task.loss(outputs, task.targets(BATCH)).sum()

    params = {"out": {"kernel": jnp.ones((D, 3)), "bias": jnp.zeros(3)}}
    assert np.isfinite(jax.grad(loss)(OUTPUTS["hidden"])).all()


# --- regression


def test_regression_predicts_in_the_unit_of_the_labels():
    batch = {**BATCH, "targets": np.array([0, 1, 2, 3, 4, 5], np.float32)}
    task = regression(SPEC, mean=2.5, scale=2.0)
    outputs = apply(task)
    predictions = jax.device_get(task.predict(outputs))
    np.testing.assert_allclose(predictions["score"], outputs["logits"][:, 0] * 2 + 2.5, rtol=1e-6)
    loss = task.loss(outputs, task.targets(batch))
    np.testing.assert_allclose(loss, ((predictions["score"] - batch["targets"]) / 2) ** 2, rtol=1e-4)
    found = task.metrics(predictions, batch["targets"], ())
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((predictions["score"] - batch["targets"]) ** 2)))
    assert found["spearman"] == pytest.approx(stats.spearmanr(batch["targets"], predictions["score"]).statistic)
    assert task.main == ("rmse", "min")
    assert regression(SPEC, main="pearson").main == ("pearson", "max")
    with pytest.raises(UserError, match="scale"):
        regression(SPEC, scale=0.0)
    with pytest.raises(UserError, match="Did you mean 'rmse'"):
        regression(SPEC, main="rms")


# --- similarity

PAIRS = {
    "inputs": {"input_ids": np.arange(B * T).reshape(B // 2, 2, T), "attention_mask": np.ones((B // 2, 2, T), int)},
    "targets": np.array([0.0, 5.0, 2.5], np.float32),
    "weight": np.ones(3, np.float32),
}


def test_pairs_are_folded_into_the_batch_side_by_side():
    task = similarity(SPEC)
    folded = task.inputs(PAIRS)
    assert {x.shape for x in folded.values()} == {(B, T)}
    np.testing.assert_array_equal(folded["input_ids"], np.arange(B * T).reshape(B, T))
    with pytest.raises(UserError, match=r"input_ids \(6, 4\)"):
        task.inputs(BATCH)


def test_the_score_is_the_cosine_of_mean_pooled_pairs():
    task = similarity(SPEC)
    predictions = jax.device_get(task.predict(apply(task)))
    mask = torch.tensor(np.asarray(OUTPUTS["mask"]))[..., None]
    mean = (torch.tensor(np.asarray(OUTPUTS["hidden"])) * mask).sum(1) / mask.sum(1)
    theirs = torch.nn.functional.cosine_similarity(mean[0::2], mean[1::2])
    np.testing.assert_allclose(predictions["score"], theirs.numpy(), atol=1e-6)
    found = task.metrics(predictions, PAIRS["targets"], ())
    assert found["spearman"] == pytest.approx(stats.spearmanr(theirs, PAIRS["targets"]).statistic)
    assert task.decode(predictions, ())[0]["score"] == pytest.approx(float(theirs[0]), abs=1e-6)


def test_similarity_trains_towards_scaled_labels():
    task = similarity(SPEC, label_range=(0.0, 5.0))
    outputs = apply(task)
    np.testing.assert_allclose(task.targets(PAIRS), [0, 1, 0.5])
    expected = (task.predict(outputs)["score"] - np.array([0, 1, 0.5])) ** 2
    np.testing.assert_allclose(task.loss(outputs, task.targets(PAIRS)), expected, rtol=1e-5)
    with pytest.raises(UserError, match="label_range"):
        similarity(SPEC, label_range=(5.0, 0.0))
