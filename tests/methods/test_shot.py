"""SHOT: information maximisation and pseudo-labels against their equations, padding, refusals, a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.shot import UNKNOWN, pseudo_labels, shot
from tljax.tasks.classification import classification
from tljax.tasks.spec import TaskSpec

TASK = classification(TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",)))
RNG = np.random.default_rng(0)
PARAMS = {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
BATCH = {
    "inputs": {"x": RNG.normal(size=(6, 4)).astype(np.float32)},
    "weight": np.array([1, 1, 1, 1, 0, 0], np.float32),
    "index": np.array([3, 0, 2, 1, -1, -1], np.int32),
}
LABELS = jnp.asarray([2, UNKNOWN, 1, 0, 1], jnp.int32)


def forward(params, state, inputs, rng, *, train=True):
    return {"logits": inputs["x"] @ params["kernel"]}, state


def value_and_gradient(batch, **options):
    method = shot(forward, TASK, **options)

    def value(params):
        state = {"method": {"labels": LABELS}}
        losses, _, metrics = method.loss(params, state, {"train": batch}, jax.random.key(0), 0)
        shares = {name: loss.sum / loss.weight for name, loss in losses.items()}
        return sum(shares.values()), (shares, metrics)

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


def test_the_losses_are_those_of_the_paper():
    assert lookup(TABLE, "shot", what="method") is shot
    (_, (shares, metrics)), found = value_and_gradient(BATCH, diversity=0.7, pseudo_label=0.4)
    kernel = torch.tensor(np.asarray(PARAMS["kernel"]), requires_grad=True)
    logits = torch.tensor(BATCH["inputs"]["x"][:4]) @ kernel
    p = torch.softmax(logits, -1)
    mean = p.mean(0)
    rows, labels = [0, 1, 2], torch.tensor([0, 2, 1])  # of the indices 3, 0, 2; the label of index 1 is not known
    expected = {
        "entropy": -(p * p.log()).sum(-1).mean(),
        "diversity": 0.7 * (mean * mean.log()).sum(),
        "pseudo_label": 0.4 * torch.nn.functional.cross_entropy(logits[rows], labels),
    }
    sum(expected.values()).backward()
    for name, value in expected.items():
        np.testing.assert_allclose(shares[name], value.item(), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], kernel.grad.numpy(), atol=1e-6)
    agreed = (logits[rows].argmax(-1) == labels).float().mean().item()
    np.testing.assert_allclose(metrics["agreement"], agreed, rtol=1e-6)


def test_padding_has_no_part_in_the_gradient():
    other = {**BATCH, "inputs": {"x": BATCH["inputs"]["x"].copy()}}
    other["inputs"]["x"][4:] = 50.0
    gradients = [value_and_gradient(batch)[1]["kernel"] for batch in (BATCH, other)]
    np.testing.assert_array_equal(*gradients)
    assert np.isfinite(gradients[0]).all()


def test_pseudo_labels_are_those_of_the_nearest_centroid():
    generator = np.random.default_rng(1)
    feature, logits = generator.normal(size=(20, 5)) + 1, generator.normal(size=(20, 4))
    logits[:, 3] = -1e9  # a class of nobody
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    unit = [f / np.sqrt(sum(v * v for v in f)) for f in feature]

    def nearest(weights):
        centroids = {}
        for k in range(4):
            total = sum(weights[i][k] for i in range(20))
            if total > 0:
                centroids[k] = sum(weights[i][k] * unit[i] for i in range(20)) / total
        cosine = lambda f, c: f @ c / np.sqrt(c @ c)  # noqa: E731
        return [max(centroids, key=lambda k, f=f: cosine(f, centroids[k])) for f in unit]

    labels = nearest(probabilities)
    expected = nearest([[float(label == k) for k in range(4)] for label in labels])
    np.testing.assert_array_equal(pseudo_labels(feature, probabilities), expected)


def test_clear_clusters_correct_a_classifier_that_is_wrong():
    centres = np.eye(3)[np.arange(30) % 3]
    feature = centres + 0.05 * np.random.default_rng(0).normal(size=(30, 3))
    probabilities = 0.3 * centres + 0.7 / 3
    probabilities[:4] = [0.1, 0.1, 0.8]
    np.testing.assert_array_equal(pseudo_labels(feature, probabilities), np.arange(30) % 3)


def test_options_and_new_heads_are_refused(adapted):
    with pytest.raises(UserError, match=r"diversity is -1(.|\n)*pseudo_label is -0.1"):
        shot(forward, TASK, diversity=-1, pseudo_label=-0.1)
    with pytest.raises(UserError, match="method shot goes on with a classifier"):
        build({**adapted, "method": {"name": "shot"}, "task": {"name": "classification"}})


def test_a_run_adapts_with_its_head_frozen(adapted):
    config = {
        **adapted,
        "method": {"name": "shot"},
        "strategy": {"freeze": {"rules": ["head/.*"]}},
        "optim": {"name": "adamw", "learning_rate": 5e-3},
    }
    job = make_job(build(config))
    before = job.evaluations["test"](job.state)[0]["accuracy"]
    state, batches = job.state, job.batches(0)
    assert not any(path.startswith("head/") for path in state.live)
    assert set(np.asarray(state.method["labels"])) == {UNKNOWN}
    losses = []
    for step in range(12):
        state = job.before(step, state)
        if step == 0:
            first = np.array(state.method["labels"])
            assert first.min() >= 0 and (first == np.arange(96) % 3).mean() > before
        state, metrics = job.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert job.evaluations["test"](state)[0]["accuracy"] > before + 0.3
