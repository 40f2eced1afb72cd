"""Tent: the entropy and its gradient, padding, what is refused; what moves, and that a run lowers the entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.tent import entropy, tent
from tljax.tasks.classification import classification
from tljax.tasks.regression import regression
from tljax.tasks.spec import TaskSpec

SPEC = TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",))
TASK = classification(SPEC)
RNG = np.random.default_rng(0)
PARAMS = {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
BATCH = {
    "inputs": {"x": RNG.normal(size=(6, 4)).astype(np.float32)},
    "weight": np.array([1, 1, 1, 1, 0, 0], np.float32),
    "index": np.array([3, 0, 2, 1, -1, -1], np.int32),
}


def forward(params, state, inputs, rng, *, train=True):
    assert train
    return {"logits": inputs["x"] @ params["kernel"]}, state


def value_and_gradient(batch):
    def value(params):
        losses, _, metrics = tent(forward, TASK).loss(params, {}, {"train": batch}, jax.random.key(0), 0)
        return losses["entropy"].sum / losses["entropy"].weight, metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


def test_the_loss_is_the_mean_entropy_of_the_real_rows():
    assert lookup(TABLE, "tent", what="method") is tent
    (value, metrics), found = value_and_gradient(BATCH)
    kernel = torch.tensor(np.asarray(PARAMS["kernel"]), requires_grad=True)
    probabilities = torch.softmax(torch.tensor(BATCH["inputs"]["x"][:4]) @ kernel, -1)
    torch.distributions.Categorical(probs=probabilities).entropy().mean().backward()
    expected = scipy.stats.entropy(probabilities.detach().numpy(), axis=1).mean()
    np.testing.assert_allclose([value, metrics["entropy"]], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["confidence"], probabilities.detach().numpy().max(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], kernel.grad.numpy(), atol=1e-6)
    other = {**BATCH, "inputs": {"x": BATCH["inputs"]["x"].copy()}}
    other["inputs"]["x"][4:] = 50.0
    np.testing.assert_array_equal(value_and_gradient(other)[1]["kernel"], found["kernel"])


def test_sure_predictions_have_no_entropy_and_a_finite_gradient():
    logits = jnp.asarray([[200.0, 0.0, -200.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(entropy(logits), [0, np.log(3)], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: entropy(x).sum())(logits)).all()


def test_other_tasks_and_new_heads_are_refused(adapted):
    with pytest.raises(UserError, match="this one is regression"):
        tent(forward, regression(SPEC)).init(None, {"logits": jnp.zeros((1, 1))})
    with pytest.raises(UserError, match="method tent goes on with a classifier that was trained before"):
        build({**adapted, "method": {"name": "tent"}, "task": {"name": "classification"}})


def test_only_the_norms_move_and_the_entropy_falls(adapted):
    rules = [[".*norm.*", "live"], [".*", "frozen"]]
    strategy = {"freeze": {"rules": rules, "batch_stats": "train"}}
    optim = {"name": "adamw", "learning_rate": 0.02}
    experiment = build({**adapted, "method": {"name": "tent"}, "strategy": strategy, "optim": optim})
    job = make_job(experiment)
    before = job.evaluations["test"](job.state)[0]["accuracy"]
    state, batches, entropies = job.state, job.batches(0), []
    assert state.live and all("norm" in path for path in state.live)
    stats = {path: np.array(leaf) for path, leaf in enumerate(jax.tree.leaves(state.batch_stats))}
    for _ in range(18):
        batch = next(batches)
        assert "targets" not in batch["train"]
        state, metrics = job.step(state, batch)
        entropies.append(float(metrics["metrics"]["entropy"]))
    assert np.mean(entropies[-6:]) < 0.95 * np.mean(entropies[:6])
    after = jax.tree.leaves(state.batch_stats)
    assert not all(np.array_equal(stats[i], leaf) for i, leaf in enumerate(after))
    assert job.evaluations["test"](state)[0]["accuracy"] > before + 0.1
