"""Prototypical networks against torch, their weights, what they refuse, and a short real run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is
from tljax.assembly.training import training_batches
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.prototypes import prototypes
from tljax.tasks.few_shot import few_shot
from tljax.tasks.spec import TaskSpec

E, W, S, Q, D = 2, 3, 2, 4, 5
B = E * W * (S + Q)
SHAPE = dict(ways=W, shots=S, queries=Q)
RNG = np.random.default_rng(0)
TASK = few_shot(TaskSpec(classes=None, own_pool="mean", pools=("mean",)), pool="mean")
PARAMS = {"kernel": jnp.asarray(RNG.normal(size=(3, D)), jnp.float32)}
BATCH = {
    "inputs": {"pixel_values": RNG.normal(size=(B, 2, 2, 3)).astype(np.float32)},
    "weight": np.ones(B, np.float32),
    "episode": np.repeat(np.arange(E), B // E).astype(np.int32),
}


def forward(params, state, inputs, rng, *, train=True):
    assert train
    return {"hidden": inputs["pixel_values"] @ params["kernel"]}, {**state, "calls": state.get("calls", 0) + 1}


def run(method, batch=BATCH, params=PARAMS):
    """(loss, metrics, gradient) of one compiled call."""

    @jax.jit
    def value(params):
        losses, state, metrics = method.loss(params, {}, {"train": batch}, jax.random.key(0), 0)
        assert state == {"calls": 1} and list(losses) == ["episode"]
        return losses["episode"].sum, (losses["episode"], metrics)

    (_, (loss, metrics)), gradient = jax.value_and_grad(value, has_aux=True)(params)
    return loss, metrics, gradient


def reference(distance, temperature):
    """(summed loss, accuracy, gradient) by torch, one episode and one query after another."""
    kernel = torch.tensor(np.asarray(PARAMS["kernel"]), requires_grad=True)
    features = (torch.tensor(BATCH["inputs"]["pixel_values"]) @ kernel).mean(dim=(1, 2))
    total, right = 0.0, 0
    for episode in features.reshape(E, W, S + Q, D):
        means = episode[:, :S].mean(dim=1)
        for way in range(W):
            for query in episode[way, S:]:
                if distance == "cosine":
                    logits = torch.nn.functional.cosine_similarity(query[None], means) / temperature
                else:
                    logits = -(torch.cdist(query[None], means)[0] ** 2) / temperature
                total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(way))
                right += int(logits.argmax() == way)
    total.backward()
    return total.item(), right / (E * W * Q), kernel.grad.numpy()


@pytest.mark.parametrize(("distance", "temperature"), [("euclidean", 1.0), ("euclidean", 2.5), ("cosine", 0.2)])
def test_value_and_gradient_equal_torch(distance, temperature):
    assert lookup(TABLE, "prototypes", what="method") is prototypes
    total, accuracy, gradient = reference(distance, temperature)
    loss, metrics, found = run(prototypes(forward, TASK, **SHAPE, distance=distance, temperature=temperature))
    np.testing.assert_allclose(loss.sum, total, rtol=1e-5)
    assert loss.weight == E * W * Q
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(found["kernel"], gradient, rtol=1e-4, atol=1e-5)


def test_rows_of_weight_0_have_no_part():
    method = prototypes(forward, TASK, **SHAPE)
    weight = BATCH["weight"].reshape(E, W, S + Q).copy()
    weight[0, 1, 0] = 0  # one shot of two
    weight[0, 2, S] = 0  # a query
    weight[1, 0, :S] = 0  # all shots of a class
    batch = {**BATCH, "weight": weight.ravel()}
    pixels = batch["inputs"]["pixel_values"].copy()
    pixels[weight.ravel() == 0] = 50.0
    loss, metrics, gradient = run(method, batch)
    again, same, equal = run(method, {**batch, "inputs": {"pixel_values": pixels}})
    np.testing.assert_array_equal(loss.sum, again.sum)
    np.testing.assert_array_equal(gradient["kernel"], equal["kernel"])
    assert np.isfinite(gradient["kernel"]).all() and metrics["accuracy"] == same["accuracy"]
    # The class without shots is no answer, and its queries do not count.
    assert loss.weight == E * W * Q - 1 - Q
    features = np.asarray(forward(PARAMS, {}, batch["inputs"], None)[0]["hidden"]).mean((1, 2)).reshape(E, W, S + Q, D)
    two = features[1, 1:]
    logits = -np.square(two[:, S:, None] - two[:, :S].mean(1)).sum(-1)
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(shifted[way, :, way].sum() for way in (0, 1))
    whole, _, _ = run(method, {**batch, "weight": (weight * np.array([0, 1])[:, None, None]).ravel()})
    np.testing.assert_allclose(whole.sum, expected, rtol=1e-4)


def test_no_shot_at_all_is_no_loss():
    loss, metrics, gradient = run(prototypes(forward, TASK, **SHAPE), {**BATCH, "weight": np.zeros(B, np.float32)})
    assert (float(loss.sum), float(loss.weight), float(metrics["accuracy"])) == (0, 0, 0)
    np.testing.assert_array_equal(gradient["kernel"], 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"ways is 1(.|\n)*queries is 0(.|\n)*Did you mean 'cosine'(.|\n)*temperature is 0"
    ):
        prototypes(forward, TASK, ways=1, shots=1, queries=0, distance="cosin", temperature=0)
    method = prototypes(forward, TASK, **SHAPE)
    with pytest.raises(UserError, match="needs one vector an example"):
        method.init(jax.random.key(0), {"hidden": None})
    with pytest.raises(UserError, match=r"config\.data\.train\.episodes=dict\(ways=3, shots=2, queries=4\)"):
        run(method, {k: v for k, v in BATCH.items() if k != "episode"})
    with pytest.raises(UserError, match=r"was given 36 examples at once(.|\n)*has 15"):
        run(prototypes(forward, TASK, ways=3, shots=1, queries=4))


# --- a real run


def save_folder(folder):
    """Eight classes of six pictures: a bright square at a place of its own, in noise."""
    generator = np.random.default_rng(0)
    for number in range(8):
        (folder / "train" / f"c{number}").mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 200, (12, 12)).astype(np.uint8)
            row, column = divmod(number * 5 % 16, 4)
            pixels[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = 250
            Image.fromarray(pixels).save(folder / "train" / f"c{number}" / f"{i}.png")
    return folder


def config_for(folder, name="prototypes", **changes):
    episode = dict(ways=4, shots=1, queries=2)
    entry = dict(source=f"image_folder:{folder}", split="train")
    return {
        "model": dict(
            family="cifar_resnet",
            variant=dict(blocks=1, widths=(8, 16), num_channels=1),
            processor=dict(size=12, channels="L", mean=0.2, std=0.3),
        ),
        "task": dict(name="few_shot", episodes=dict(ways=4, shots=1, queries=2, count=50)),
        "method": dict(name=name, **episode),
        "optim": dict(name="adamw", learning_rate=3e-3),
        "data": dict(train=dict(**entry, episodes=episode), validation=dict(entry)),
        "train": dict(batch_size=24, steps=40, eval_batch_size=48),
        "mesh": dict(data=1),
        **changes,
    }


def test_it_learns(tmp_path):
    config = config_for(save_folder(tmp_path))
    before = evaluate_as_is(build(config), "validation")[0]
    experiment, losses = train_steps(config, 40)
    after = evaluate_as_is(experiment, "validation")[0]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert before["accuracy"] < 0.6 and after["accuracy"] > 0.8
    assert after["error"] == pytest.approx(1 - after["accuracy"])
    assert (after["episodes"], 0 < after["interval"] < 0.1) == (50, True)


def test_numbers_that_disagree_are_refused_before_anything_is_compiled(tmp_path):
    folder = save_folder(tmp_path)

    def first_batch(**changes):
        return next(training_batches(build(config_for(folder, **changes)), 0))

    method = dict(name="prototypes", ways=2, shots=1, queries=5)
    with pytest.raises(UserError, match=r"config\.method\.ways is 2, and (.|\n)*ways 4(.|\n)*queries is 5"):
        first_batch(method=method)
    data = config_for(folder)["data"]
    data["validation"]["episodes"] = data["train"]["episodes"]
    with pytest.raises(UserError, match=r"config\.data\.validation\.episodes: the method does not read(.|\n)*task"):
        first_batch(data=data)
    data["train"]["episodes"] = dict(ways=4, shot=1)
    with pytest.raises(UserError, match=r"episodes\.shot is not an option(.|\n)*Did you mean 'shots'"):
        first_batch(data=data)
