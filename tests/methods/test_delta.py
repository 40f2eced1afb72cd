"""DELTA: value and gradient against torch, the channels' weights, what is refused, and runs near a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import softmax

from tljax.assembly.experiment import build
from tljax.assembly.objective import teacher_of
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.methods.delta import channel_weights, delta
from tljax.methods.supervised import supervised
from tljax.tasks.classification import classification
from tljax.tasks.spec import TaskSpec

RNG = np.random.default_rng(0)
TASK = classification(TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",)))
KERNELS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in dict(one=(4, 5), out=(5, 3)).items()}
START = {name: kernel + RNG.normal(0, 0.3, kernel.shape).astype(np.float32) for name, kernel in KERNELS.items()}
PARAMS = {"backbone": {"one": KERNELS["one"]}, "head": {"out": KERNELS["out"]}, "teacher": START}
MASK = np.array([[1, 1], [1, 0], [1, 1], [1, 0]], np.float32)
BATCH = {
    "inputs": {"x": RNG.normal(size=(4, 2, 4)).astype(np.float32)},
    "targets": np.array([0, 2, 1, 1], np.int32),
    "weight": np.array([1, 2, 1, 0], np.float32),
    "index": np.arange(4, dtype=np.int32),
}
SHAPES = {
    "logits": jax.ShapeDtypeStruct((1, 3), "float32"),
    "hidden_states": tuple(jax.ShapeDtypeStruct((1, 2, width), "float32") for width in (4, 5)),
}


def run(one, out, x, gates=None):
    hidden = jnp.tanh(x @ one)
    hidden = hidden if gates is None else hidden * gates["block0"][:, None]
    return {"logits": hidden.mean(1) @ out, "hidden": hidden, "mask": MASK, "hidden_states": (x, hidden)}


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    return run(params["backbone"]["one"], params["head"]["out"], inputs["x"]), state


def teacher(params, inputs, *, hidden_states=False, gates=None):
    return run(params["teacher"]["one"], params["teacher"]["out"], inputs["x"], gates)


teacher.shapes, teacher.stages = SHAPES, ("embed", "block0")


def value_and_gradient(method, state=None):
    def value(params):
        losses, _, metrics = method.loss(params, {"method": state}, {"train": BATCH}, jax.random.key(0), 0)
        return sum(loss.sum / loss.weight for loss in losses.values()), metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


@pytest.mark.parametrize("attention", [False, True])
def test_value_and_gradient_equal_torch(attention):
    factors = np.linspace(0.2, 1.8, 5).astype(np.float32) if attention else np.ones(5, np.float32)
    method = delta(forward, TASK, teacher=teacher, weight=0.4, attention=attention)
    (value, metrics), gradient = value_and_gradient(method, {"attention": {"1": factors}})
    one, out = (torch.tensor(KERNELS[name], requires_grad=True) for name in ("one", "out"))
    x, weight, mask = (torch.tensor(a) for a in (BATCH["inputs"]["x"], BATCH["weight"], MASK))
    hidden, first = torch.tanh(x @ one), torch.tanh(x @ torch.tensor(START["one"]))
    squares = ((hidden - first) ** 2 * torch.tensor(factors)).sum(-1)
    distance = (squares * mask).sum(1) / mask.sum(1)
    task = torch.nn.functional.cross_entropy(
        hidden.mean(1) @ out, torch.tensor(BATCH["targets"]).long(), reduction="none"
    )
    expected = ((task + 0.2 * distance) * weight).sum() / weight.sum()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert float(metrics["distance"]) == pytest.approx(((distance * weight).sum() / weight.sum()).item(), rel=1e-5)
    np.testing.assert_allclose(gradient["backbone"]["one"], one.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient["head"]["out"], out.grad, rtol=1e-4, atol=1e-6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["teacher"]))


def test_without_weight_its_gradient_is_the_supervised_one():
    (value, _), gradient = value_and_gradient(delta(forward, TASK, teacher=teacher, weight=0.0))
    (expected, _), wanted = value_and_gradient(supervised(forward, TASK))
    assert value == expected
    jax.tree.map(np.testing.assert_array_equal, gradient, wanted)


def test_the_rise_of_the_loss_is_its_slope_towards_a_channel_that_is_zero():
    method = delta(forward, TASK, teacher=teacher, attention=True)
    found = method.survey.read(PARAMS, {}, BATCH)
    assert set(found) == {"1"} and found["1"].shape == (4, 5)
    weights = np.asarray(TASK.weights(BATCH))

    def loss(gates):
        outputs = teacher(PARAMS, BATCH["inputs"], gates={"block0": gates})
        return np.asarray(TASK.loss(outputs, TASK.targets(BATCH)), np.float64) * weights

    for channel in range(5):
        lower, upper = (np.ones((4, 5), np.float32) for _ in range(2))
        lower[:, channel], upper[:, channel] = 0.98, 1.02
        np.testing.assert_allclose(found["1"][:, channel], (loss(lower) - loss(upper)) / 0.04, atol=1e-3)
    rises = np.mean(found["1"], axis=0)
    factors = method.survey.digest({}, {"train": {**found, "targets": BATCH["targets"]}})["attention"]["1"]
    np.testing.assert_allclose(factors, 5 * softmax(rises), rtol=1e-5)
    assert channel_weights(rises, 0.01).argmax() == rises.argmax() and channel_weights(rises, 0.01).max() > 3


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match=r"weight is -1(.|\n)*teacher is 'bert'(.|\n)*states is 3(.|\n)*attention is 1"):
        delta(forward, TASK, teacher="bert", weight=-1, states=3, attention=1)

    def refused(message, theirs=SHAPES, ours=SHAPES, **options):
        other = lambda *_, **__: None  # noqa: E731
        other.shapes = theirs
        with pytest.raises(UserError, match=message):
            delta(forward, TASK, teacher=other, **options).init(jax.random.key(0), ours)

    refused("has 2 hidden states, and states names number 2", states=(2,))
    refused("reports no hidden states", ours={})
    wide = jax.ShapeDtypeStruct((1, 2, 6), "float32")
    refused("hidden state 1 is not of one shape", theirs={**SHAPES, "hidden_states": (wide, wide)})
    refused("config.method.teacher has none", theirs={"hidden_states": SHAPES["hidden_states"]}, attention=True)
    with pytest.raises(UserError, match="random values are nothing to stay near"):
        teacher_of({"name": "delta"}, {"family": "bert", "variant": {}})


# --- runs


def test_a_run_starts_at_distance_zero_and_a_strong_pull_keeps_it_near(adapted):
    distances = {}
    for weight in (0.0, 100.0):
        method = {"name": "delta", "weight": weight}
        job = make_job(build({**adapted, "method": method, "strategy": {"fine_tune": {"batch_stats": "frozen"}}}))
        state, batches, found = job.state, job.batches(0), []
        for _ in range(8):
            state, metrics = job.step(state, next(batches))
            found.append(float(metrics["metrics"]["distance"]))
        distances[weight] = found
    assert distances[0.0][0] < 1e-9 and distances[100.0][0] < 1e-9
    assert distances[0.0][-1] > 5 * distances[100.0][-1] > 0


def test_the_attention_is_taken_before_the_first_step_and_kept(adapted):
    method = {"name": "delta", "attention": True, "temperature": 0.1, "states": (-1,), "teacher": adapted["model"]}
    job = make_job(build({**adapted, "method": method}))
    state = job.before(0, job.state)
    ((name, factors),) = state.method["attention"].items()
    assert name == "3" and factors.shape == (8,)
    assert float(factors.mean()) == pytest.approx(1.0, rel=1e-5) and float(factors.std()) > 0.01
    kept = np.array(factors)
    state, _ = job.step(state, next(job.batches(0)))
    np.testing.assert_array_equal(job.before(1, state).method["attention"]["3"], kept)
