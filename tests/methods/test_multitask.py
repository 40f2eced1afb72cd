"""Multi-task training: mixing, weights, gradients that give way, against formulas written otherwise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.base.types import Method
from tljax.methods import TABLE
from tljax.methods.multitask import mixing, multitask, pcgrad, surgery
from tljax.methods.supervised import supervised
from tljax.tasks.classification import classification
from tljax.tasks.several import several
from tljax.tasks.spec import TaskSpec
from tljax.train.state import first_state, split
from tljax.train.step import make_step

B, T, D = 6, 4, 5
RNG = np.random.default_rng(0)
KEY = jax.random.key(1)
ONE = TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",))
SECTIONS = {"kinds": {"name": "classification"}, "moods": {"name": "classification"}, "scores": {"name": "regression"}}
CLASSES = {"kinds": 3, "moods": 2, "scores": None}


def make_task(*names):
    parts = {name: ONE._replace(classes=CLASSES[name] and tuple("abc"[: CLASSES[name]])) for name in names}
    return several(ONE._replace(classes=None, parts=parts), tasks={name: SECTIONS[name] for name in names})


def forward_of(head):
    def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
        hidden = jnp.tanh(inputs["input_values"] @ params["backbone"]["block0"]["kernel"])
        outputs = {"hidden": hidden, "mask": jnp.ones(hidden.shape[:2])}
        return head.apply({"params": params["head"]}, outputs, train), {**state, "calls": state.get("calls", 0) + 1}

    return forward


def make_params(task, **wing):
    kernel = jnp.asarray(RNG.normal(size=(D, D)), jnp.float32)
    outputs = {"hidden": jnp.zeros((1, T, D)), "mask": jnp.ones((1, T))}
    head = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), jnp.float32),
        task.head.init(KEY, outputs)["params"],
    )
    return {"backbone": {"block0": {"kernel": kernel}}, "head": head, **wing}


def make_batch(name, count=B):
    generator = np.random.default_rng(sum(map(ord, name)))
    classes = CLASSES[name]
    targets = generator.integers(0, classes, count) if classes else generator.normal(size=count)
    return {
        "inputs": {"input_values": generator.normal(size=(count, T, D)).astype(np.float32)},
        "targets": targets.astype(np.int32 if classes else np.float32),
        "weight": np.array([1, 2, 0.5, 1, 1, 0] * 2, np.float32)[:count],
    }


NAMES = ("kinds", "moods", "scores")
TASK = make_task(*NAMES)
FORWARD = forward_of(TASK.head)
PARAMS = make_params(TASK)
BATCHES = {
    "train_kinds": make_batch("kinds"),
    "train_moods": make_batch("moods", 8),
    "train_scores": make_batch("scores"),
}


def losses_of(method, params=PARAMS, batches=BATCHES):
    return method.loss(params, {}, batches, KEY, 0)


def joint(method, params=PARAMS, batches=BATCHES):
    return sum(each.sum / each.weight for each in losses_of(method, params, batches)[0].values())


def torch_losses(leaves):
    """{task: its mean loss}, from torch tensors of the parameters, written with torch alone."""
    found = {}
    for name in NAMES:
        batch = BATCHES[f"train_{name}"]
        hidden = torch.tanh(torch.tensor(batch["inputs"]["input_values"]) @ leaves["backbone/block0/kernel"])
        logits = hidden.mean(1) @ leaves[f"head/{name}/out/kernel"] + leaves[f"head/{name}/out/bias"]
        targets, weight = torch.tensor(batch["targets"]), torch.tensor(batch["weight"])
        if name == "scores":
            each = (logits[:, 0] - targets) ** 2
        else:
            each = torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none")
        found[name] = (each * weight).sum() / weight.sum()
    return found


def tensors(params):
    return {p: torch.tensor(np.asarray(x), requires_grad=True) for p, x in flatten(params).items()}


SHARE = {name: BATCHES[f"train_{name}"]["weight"].sum() for name in NAMES}
SHARE = {name: share / sum(SHARE.values()) for name, share in SHARE.items()}
GIVEN = {"kinds": 0.3, "moods": 0.0, "scores": 2.5}


@pytest.mark.parametrize(
    ("weighting", "factors"), [("equal", dict.fromkeys(NAMES, 1.0)), ("examples", SHARE), (GIVEN, GIVEN)], ids=str
)
@pytest.mark.parametrize("gradients", ["sum", "pcgrad"])
def test_the_joint_loss_and_its_gradient_equal_torch(weighting, factors, gradients):
    method = multitask(FORWARD, TASK, weighting=weighting, gradients=gradients)
    leaves = tensors(PARAMS)
    theirs = sum(factors[name] * each for name, each in torch_losses(leaves).items())
    theirs.backward()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: joint(method, p)))(PARAMS)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, leaves[path].grad, atol=1e-5, err_msg=path)


def test_uncertainty_equals_the_formula_of_kendall():
    rate = 3.0
    logs = {"kinds": 0.4, "moods": -0.2, "scores": 0.1}
    params = {**PARAMS, "method": {"log_variance": {name: jnp.float32(s) for name, s in logs.items()}}}
    method = multitask(FORWARD, TASK, weighting="uncertainty", variance_rate=rate)
    leaves = tensors(params)
    theirs = 0.0
    for name, loss in torch_losses(leaves).items():
        sigma = torch.exp(rate * leaves[f"method/log_variance/{name}"] / 2)
        theirs = theirs + loss / ((2 if name == "scores" else 1) * sigma**2) + torch.log(sigma)
    theirs.backward()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: joint(method, p)))(params)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, leaves[path].grad, atol=1e-5, err_msg=path)
    metrics = losses_of(method, params)[2]
    assert metrics["weight_scores"] == pytest.approx(0.5 * np.exp(-0.3), rel=1e-5)
    wing, state = method.init(KEY, {})
    assert set(flatten(wing)) == {f"log_variance/{name}" for name in NAMES} and state == {}


def test_one_task_is_supervised_learning_exactly():
    task, batch = make_task("kinds"), make_batch("kinds")
    params = make_params(task)
    alone = classification(ONE)
    single = supervised(forward_of(alone.head), alone)
    several_of_one = multitask(forward_of(task.head), task)
    theirs, state, _ = single.loss({**params, "head": params["head"]["kinds"]}, {}, {"train": batch}, KEY, 0)
    ours, renewed, _ = losses_of(several_of_one, params, {"train_kinds": batch})
    assert ours["kinds"] == theirs["task"] and state == renewed
    one = jax.grad(lambda p: joint(several_of_one, p, {"train_kinds": batch}))(params)
    two = jax.grad(
        lambda p: (lambda each: each.sum / each.weight)(single.loss(p, {}, {"train": batch}, KEY, 0)[0]["task"])
    )({**params, "head": params["head"]["kinds"]})
    np.testing.assert_array_equal(one["backbone"]["block0"]["kernel"], two["backbone"]["block0"]["kernel"])
    np.testing.assert_array_equal(one["head"]["kinds"]["out"]["kernel"], two["head"]["out"]["kernel"])


def test_padding_changes_nothing_and_a_task_moves_its_own_head_only():
    method = multitask(FORWARD, TASK)
    gradient = jax.jit(lambda b: jax.grad(lambda p: losses_of(method, p, b)[0]["kinds"].sum)(PARAMS))
    other = jax.tree.map(np.copy, BATCHES)
    other["train_kinds"]["inputs"]["input_values"][5] = 9.0
    other["train_scores"]["targets"][:] = 7.0
    first, second = flatten(gradient(BATCHES)), flatten(gradient(other))
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path])
        assert bool(np.any(leaf)) == path.startswith(("backbone/", "head/kinds/"))


# --- mixing


def test_mixing_follows_raffel():
    counts = {"small": 100, "middle": 1000, "large": 100_000}
    even = mixing(counts, float("inf"))
    assert all(share == pytest.approx(1 / 3) for share in even.values())
    assert mixing(counts)["middle"] == pytest.approx(1000 / 101_100)
    two = mixing(counts, 2.0, limit=10_000)
    rates = np.array([100, 1000, 10_000]) / 11_100
    np.testing.assert_allclose(list(two.values()), rates**0.5 / (rates**0.5).sum(), rtol=1e-12)


# --- gradients that give way


def literal_pcgrad(vectors, orders):
    """Algorithm 1 of Yu et al. 2020, projection after projection."""
    total = np.zeros_like(vectors[0])
    for i, order in enumerate(orders):
        mine = vectors[i].copy()
        for j in order:
            if j != i and mine @ vectors[j] < 0:
                mine = mine - (mine @ vectors[j]) / (vectors[j] @ vectors[j]) * vectors[j]
        total += mine
    return total


def gradients_of(vectors):
    """Flat trees of two backbone leaves and one of the head, with these joint backbone vectors."""
    return {
        f"task{i}": {
            "backbone/a/kernel": jnp.asarray(v[:6].reshape(2, 3), jnp.float32),
            "backbone/b/bias": jnp.asarray(v[6:], jnp.float32),
            "head/x/kernel": jnp.full((2,), i - 1.0),
        }
        for i, v in enumerate(vectors)
    }


def test_pcgrad_is_the_literal_algorithm_in_one_of_its_orders():
    vectors = np.random.default_rng(3).normal(size=(3, 10))
    vectors[1] -= 1.2 * vectors[0]
    vectors[2] -= 0.9 * vectors[0] + 0.8 * vectors[1]
    others = [[tuple(order) for order in itertools.permutations({0, 1, 2} - {i})] for i in range(3)]
    possible = [literal_pcgrad(vectors, orders) for orders in itertools.product(*others)]
    seen = set()
    run = jax.jit(pcgrad)
    for key in jax.random.split(KEY, 24):
        found, metrics = run(gradients_of(vectors), key)
        flat = np.concatenate([found["backbone/a/kernel"].ravel(), found["backbone/b/bias"]])
        distances = [np.abs(flat - each).max() for each in possible]
        assert min(distances) < 1e-4
        seen.add(int(np.argmin(distances)))
        np.testing.assert_array_equal(found["head/x/kernel"], [0.0, 0.0])  # −1 + 0 + 1: no surgery on heads
    assert len(seen) > 1, "the order is drawn anew"
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i, j in itertools.combinations(range(3), 2)]
    assert metrics["cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert metrics["conflicts"] == pytest.approx(np.mean(np.array(cosines) < 0))


def test_pcgrad_of_gradients_that_agree_is_the_plain_sum():
    run = jax.jit(pcgrad)
    for vectors in (np.eye(10)[:3], np.ones((3, 10)), np.zeros((3, 10)), np.ones((1, 10))):
        grads = gradients_of(vectors)
        found, metrics = run(grads, KEY)
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, sum(each[path] for each in grads.values()))
        assert metrics["conflicts"] == 0
    factors = jax.jit(surgery)(jnp.asarray([[1.0, -1.0], [-1.0, 1.0]]), KEY)
    np.testing.assert_allclose(factors, [2.0, 2.0])  # g and −g: each gives way wholly, 2 · (g − g) = 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_pcgrad_equals_torch_gradients_put_through_the_literal_algorithm(accumulate):
    method = multitask(FORWARD, TASK, gradients="pcgrad")
    leaves = tensors(PARAMS)
    grads = {}
    for name, loss in torch_losses(leaves).items():
        found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        grads[name] = {p: np.zeros(x.shape) if g is None else g.numpy() for (p, x), g in pairs}
    shared = "backbone/block0/kernel"
    vectors = [grads[name][shared].ravel() for name in NAMES]
    others = [[tuple(order) for order in itertools.permutations({0, 1, 2} - {i})] for i in range(3)]
    possible = [literal_pcgrad(vectors, orders) for orders in itertools.product(*others)]
    live, frozen = split(PARAMS, frozenset(flatten(PARAMS)), jnp.float32)
    optimizer = optax.sgd(1.0)
    plain = Method(loss=lambda p, s, b, r, n: (*method.loss(p, {}, b, r, n)[:1], s, {}), combine=method.combine)
    step = make_step(plain, optimizer, compute_dtype=jnp.float32, accumulate=accumulate)
    state = first_state(live, optimizer, batch_stats={}, method={})
    renewed, report = jax.jit(step)(state, frozen, BATCHES, KEY)
    moved = np.asarray(live[shared] - renewed.live[shared]).ravel()
    assert min(np.abs(moved - each).max() for each in possible) < 1e-4
    path = "head/moods/out/kernel"
    np.testing.assert_allclose(live[path] - renewed.live[path], grads["moods"][path], atol=1e-5)
    assert 0 <= report["metrics"]["conflicts"] <= 1 and set(report["losses"]) == set(NAMES)


def test_faults_are_said_together():
    with pytest.raises(UserError, match=r"config.task is classification(.|\n)*several"):
        multitask(FORWARD, classification(ONE))
    with pytest.raises(UserError) as error:
        multitask(FORWARD, TASK, weighting={"kind": 1}, temperature=0.5, limit=0, gradients="pcgard", variance_rate=0)
    for wanted in ("no number for moods", "kind is no task. Did you mean 'kinds'", "temperature is 0.5", "limit is 0"):
        assert wanted in str(error.value)
    assert "Did you mean 'pcgrad'" in str(error.value) and "variance_rate is 0" in str(error.value)
    with pytest.raises(UserError, match="weighting is 'even'"):
        multitask(FORWARD, TASK, weighting="even")
    assert lookup(TABLE, "multitask", what="method") is multitask
