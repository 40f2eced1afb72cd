"""Importance weighting: the estimates against reference solvers and known densities, the loss, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from tests.tiny import train_steps
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.importance import (
    box_programme,
    classifier_ratios,
    importance,
    kernel_mean_matching,
    onto_slab,
    read_weights,
    scaled,
)
from tljax.methods.supervised import supervised
from tljax.tasks.classification import classification
from tljax.tasks.similarity import similarity
from tljax.tasks.spec import TaskSpec

SPEC = TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",))
TASK = classification(SPEC)
RNG = np.random.default_rng(0)
PARAMS = {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
BATCH = {
    "inputs": {"x": RNG.normal(size=(6, 4)).astype(np.float32)},
    "targets": RNG.integers(0, 3, 6).astype(np.int32),
    "weight": np.array([1, 2, 1, 0.5, 1, 0], np.float32),
    "index": np.array([3, 0, 9, 4, 7, -1], np.int32),
}
KNOWN = RNG.gamma(2.0, size=10).astype(np.float32)


def forward(params, state, inputs, rng, *, train=True):
    return {"logits": inputs["x"] @ params["kernel"]}, state


def gradient(method, state, batch=BATCH):
    def value(params):
        losses, _, metrics = method.loss(params, state, {"train": batch}, jax.random.key(0), 0)
        return losses["task"].sum / losses["task"].weight, metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


def test_the_loss_is_the_supervised_one_with_weights():
    assert lookup(TABLE, "importance", what="method") is importance
    method = importance(forward, TASK)
    state = {"method": {"weights": jnp.asarray(KNOWN)}}
    (value, metrics), found = gradient(method, state)
    x, weight, own = BATCH["inputs"]["x"], KNOWN[BATCH["index"]] * BATCH["weight"], BATCH["weight"]
    shares = np.asarray(jax.nn.softmax(x @ PARAMS["kernel"]))
    true = np.eye(3)[BATCH["targets"]]
    np.testing.assert_allclose(value, -(np.log((shares * true).sum(1)) * weight).sum() / own.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], x.T @ ((shares - true) * weight[:, None]) / own.sum(), atol=1e-6)
    np.testing.assert_allclose(metrics["effective_sample_size"], KNOWN.sum() ** 2 / (KNOWN**2).sum() / 10, rtol=1e-5)


def test_weights_of_one_are_the_supervised_gradient_to_the_bit():
    method = importance(forward, TASK)
    (value, _), found = gradient(method, {"method": method.start({}, {}, {"train": 10})})
    (plain, _), expected = gradient(supervised(forward, TASK), {})
    assert value == plain
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])


def test_the_programme_equals_a_reference_solver():
    for seed, (most, least, largest) in enumerate([(1000.0, 0.0, 60.0), (2.0, 11.0, 13.0), (5.0, 4.0, 5.0)]):
        generator = np.random.default_rng(seed)
        factor = generator.normal(size=(12, 12))
        matrix, pull = factor @ factor.T / 12 + 0.05 * np.eye(12), generator.normal(size=12) + 1
        found = box_programme(matrix, pull, most=most, least_sum=least, most_sum=largest)
        reference = scipy.optimize.minimize(
            lambda x, a=matrix, b=pull: x @ a @ x / 2 - b @ x,
            np.ones(12),
            jac=lambda x, a=matrix, b=pull: a @ x - b,
            bounds=[(0, most)] * 12,
            constraints=scipy.optimize.LinearConstraint(np.ones(12), least, largest),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        np.testing.assert_allclose(found, reference.x, atol=1e-4)
        assert found.min() >= 0 and found.max() <= most and least - 1e-6 <= found.sum() <= largest + 1e-6


def test_the_projection_is_the_nearest_point():
    x = np.random.default_rng(0).normal(size=12) * 3
    for least, most_sum in ((0, 30), (14, 15), (2, 3)):
        found = onto_slab(x, most=2.0, least_sum=least, most_sum=most_sum)
        others = scipy.optimize.minimize(
            lambda y: np.sum((y - x) ** 2),
            np.ones(12),
            jac=lambda y: 2 * (y - x),
            bounds=[(0, 2)] * 12,
            constraints=scipy.optimize.LinearConstraint(np.ones(12), least, most_sum),
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(found, others.x, atol=1e-4)


def shifted(count=400):
    """Samples of N(0, 1) and of N(0.7, 0.6²), and the ratio of the densities at the first."""
    generator = np.random.default_rng(1)
    source, target = generator.normal(size=(count, 1)), 0.7 + 0.6 * generator.normal(size=(count, 1))
    ratio = scipy.stats.norm.pdf(source, 0.7, 0.6) / scipy.stats.norm.pdf(source)
    return source, target, ratio[:, 0]


def test_kernel_mean_matching_finds_the_ratio_of_the_densities():
    source, target, ratio = shifted()
    found = scaled(kernel_mean_matching(source, target, most=10.0))
    assert np.corrcoef(found, ratio)[0, 1] > 0.8
    assert np.average(source[:, 0], weights=found) == pytest.approx(target.mean(), abs=0.05)
    alike = scaled(kernel_mean_matching(source[:200], source[200:], most=10.0, slack=0.0))
    assert np.average(source[:200, 0], weights=alike) == pytest.approx(source[200:].mean(), abs=0.05)


def test_the_classifier_finds_the_ratio_of_the_densities():
    source, target, ratio = shifted()
    # The log-ratio of two normals is a polynomial of degree 2.
    square = [np.concatenate([x, x**2], axis=1) for x in (source, target)]
    found = classifier_ratios(*square, most=10.0)
    assert abs(np.log(found[ratio > 0.05]) - np.log(ratio[ratio > 0.05])).mean() < 0.25
    assert np.corrcoef(found, ratio)[0, 1] > 0.9
    # Half of the target: the ratio stays what it is.
    fewer = classifier_ratios(square[0], square[1][::2], most=10.0)
    assert np.corrcoef(fewer, ratio)[0, 1] > 0.9 and fewer.mean() == pytest.approx(found.mean(), rel=0.2)
    assert classifier_ratios(*square, most=1.5).max() == 1.5


def test_given_weights_are_read_and_checked(tmp_path):
    np.save(tmp_path / "w.npy", np.array([1, 2, 3]))
    np.testing.assert_allclose(read_weights(f"{tmp_path}/w.npy", 3), [0.5, 1, 1.5])
    np.testing.assert_allclose(read_weights("tests.methods.test_importance:three:7", 3), [7 / 4, 1 / 2, 3 / 4])
    np.save(tmp_path / "bad.npy", np.array([1.0, -2.0]))
    for spec, count, message in (
        (f"{tmp_path}/w.npy", 4, "each of the 4 records"),
        (f"{tmp_path}/bad.npy", 2, "finite number from 0"),
        (f"{tmp_path}/none.npy", 2, "cannot be read"),
        ("weights.txt", 2, "name a .npy file"),
        ("tests.methods.test_importance:thre:1", 3, "Did you mean 'three'"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(spec, count)
    with pytest.raises(UserError, match="no weight above 0"):
        scaled(np.zeros(3))


def three(rest):
    return [int(rest), 2, 3]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match=r"Did you mean 'kmm'(.|\n)*most is 0.5(.|\n)*slack is 2"):
        importance(forward, TASK, estimate="kmn", most=0.5, slack=2)
    with pytest.raises(UserError, match="weights belong to estimate='given'"):
        importance(forward, TASK, weights="w.npy")
    with pytest.raises(UserError, match="this task is similarity"):
        importance(forward, similarity(SPEC)).init(None, {})
    with pytest.raises(UserError, match="holds at most 10,000"):
        importance(forward, TASK, estimate="kmm").start({}, {}, {"train": 10_001})


@pytest.mark.parametrize("estimate", ["kmm", "classifier"])
def test_a_run_weighs_the_examples_that_are_like_the_target(tmp_path, estimate):
    generator = np.random.default_rng(0)
    for name, bright in (("source", 0.25), ("target", 0.75)):
        light = generator.random(60) < bright
        images = generator.integers(0, 100, (60, 8, 8, 3)) + 150 * light[:, None, None, None]
        np.savez(tmp_path / f"{name}.npz", image=images.astype(np.uint8), label=np.arange(60) % 2, light=light)
    entry = {name: {"source": f"npz:{tmp_path}/{name}.npz", "processor": {"size": 8}} for name in ("source", "target")}
    config = {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "task": {"name": "classification", "init": "normal"},
        "method": {"name": "importance", "estimate": estimate},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "data": {"train": entry["source"], "target": entry["target"]},
        "train": {"batch_size": 20, "steps": 20},
        "mesh": {"data": 1},
    }
    job = make_job(build(config))
    weights = np.asarray(job.before(0, job.state).method["weights"])
    light = np.load(tmp_path / "source.npz")["light"]
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights[light].mean() > 2 > 1 > weights[~light].mean()
    later = job.before(3, job.state)
    np.testing.assert_array_equal(later.method["weights"], 1)  # before the first step only
    _, losses = train_steps(config, 20)
    assert np.mean(losses[-5:]) < losses[0]
