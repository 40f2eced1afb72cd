"""SimCLR: loss and gradient against torch's cross entropy, padding, devices, and a run whose backbone is exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTModel

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.cli.main import main
from tljax.methods import TABLE
from tljax.methods.simclr import nt_xent, simclr
from tljax.tasks.pretraining import pretraining
from tljax.tasks.spec import TaskSpec

TASK = pretraining(TaskSpec(classes=None, own_pool="mean", pools=("mean",)))
TASK = TASK._replace(feature=lambda outputs: outputs["hidden"].mean(axis=(1, 2)))
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
B, D = 8, 5
SHAPES = {"feature": jax.ShapeDtypeStruct((1, D), jnp.float32)}
VIEWS = {name: {"pixel_values": RNG.normal(size=(B, 2, 2, 3)).astype(np.float32)} for name in ("a", "b")}
BATCH = {"inputs": VIEWS["a"], "views": VIEWS, "weight": np.ones(B, np.float32), "index": np.arange(B)}
KERNEL = jnp.asarray(RNG.normal(size=(3, D)), jnp.float32)
PADDED = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)

TINY_VIT = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=8,
    patch_size=2,
    num_channels=3,
)
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.seed = 0
    config.model = {model!r}
    config.task = dict(name="pretraining")
    config.method = {method!r}
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=5e-3, schedule="constant")
    views = dict(a=dict(flip=True, crop=1), b=dict(resized_crop=(0.6, 1.0)))
    config.data = dict(train=dict(source="npz:{images}", processor=dict(size=8), views=views))
    config.train = dict(batch_size=16, steps={steps}, log_every=1)
    config.mesh = dict(data=1)
    return config
"""


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    return {"hidden": jnp.tanh(inputs["pixel_values"] @ params["backbone"]["kernel"])}, state


def pretrain(folder, model: dict, method: dict, steps: int) -> list[dict]:
    """The training records of a run of the command line on pictures of six kinds, whose backbone is then exported."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 256, (6, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2)
    noise = generator.integers(-20, 21, (48, 8, 8, 3))
    pictures = np.clip(kinds[np.arange(48) % 6] + noise, 0, 255).astype(np.uint8)
    np.savez(folder / "images.npz", image=pictures, label=np.arange(48) % 6)
    text = CONFIG.format(model=model, method=method, images=folder / "images.npz", steps=steps)
    (folder / "config.py").write_text(text)
    run = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]
    assert main(["train", *run]) == 0
    assert main(["export", *run]) == 0
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def falls(records: list[dict], share: float) -> bool:
    """Whether the mean loss of the last five steps is below `share` of that of the first five."""
    losses = [record["loss"] for record in records]
    return np.mean(losses[-5:]) < share * np.mean(losses[:5])


def test_the_loss_and_its_gradient_are_those_of_torch():
    """Each vector is a query, and the cross entropy is over all other vectors of real rows."""
    a, b = (RNG.normal(size=(B, D)).astype(np.float32) for _ in range(2))

    def ours(a, b):
        each, right = nt_xent(a, b, jnp.asarray(PADDED), 0.3)
        return jnp.sum(each * PADDED), (each, right)

    (_, (each, right)), gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(a, b)
    x, y = (torch.tensor(v, requires_grad=True) for v in (a, b))
    n = 6
    vectors = torch.nn.functional.normalize(torch.cat([x[:n], y[:n]]), dim=1)
    scores = (vectors @ vectors.T / 0.3).masked_fill(torch.eye(2 * n, dtype=bool), -torch.inf)
    target = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    theirs = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    (theirs.sum() / 2).backward()
    np.testing.assert_allclose(each[:n], theirs.detach().view(2, n).mean(0), rtol=1e-5)
    for found, wanted in zip(gradients, (x.grad, y.grad), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    nearest = (scores.argmax(1) == target).view(2, n).float().mean(0)
    np.testing.assert_array_equal(right[:n], nearest)


def total(params, batch):
    losses, _, metrics = simclr(forward, TASK, sizes=[7, 4]).loss(params, {}, {"train": batch}, KEY, 0)
    return losses["contrastive"].sum / losses["contrastive"].weight, metrics


def params_of() -> dict:
    return {"backbone": {"kernel": KERNEL}, "method": simclr(forward, TASK, sizes=[7, 4]).init(KEY, SHAPES)[0]}


COMPILED = jax.jit(jax.value_and_grad(total, has_aux=True))


def test_padding_is_no_negative_and_changes_nothing():
    shorter = jax.tree.map(lambda x: x[:6], BATCH)
    padded = {**jax.tree.map(np.copy, BATCH), "weight": PADDED}
    for view in padded["views"].values():
        view["pixel_values"][6:] = 30.0
    (one, _), small = COMPILED(params_of(), shorter)
    (two, _), large = COMPILED(params_of(), padded)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert np.any(large["backbone"]["kernel"]) and np.any(large["method"]["projector"]["layer0"]["kernel"])


def test_negatives_are_those_of_all_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    parts = jax.device_put(BATCH, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    (one, _), whole = COMPILED(params_of(), BATCH)
    (two, _), sharded = COMPILED(params_of(), parts)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_run_learns_and_leaves_a_backbone_for_transformers(tmp_path):
    records = pretrain(
        tmp_path, dict(family="vit", variant=TINY_VIT), dict(name="simclr", sizes=(32, 16), temperature=0.2), 40
    )
    assert falls(records, 0.85)
    _, info = ViTModel.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_what_does_not_fit_is_refused():
    assert lookup(TABLE, "simclr", what="method") is simclr
    with pytest.raises(UserError, match=r"temperature is 0; (.|\n)*sizes is \(\)"):
        simclr(forward, TASK, temperature=0, sizes=())
    with pytest.raises(UserError, match="simclr needs one vector an example"):
        simclr(forward, TASK).init(KEY, {"feature": None})
    pairs = TASK._replace(
        name="pairs", inputs=lambda batch: jax.tree.map(lambda x: jnp.repeat(x, 2, 0), batch["inputs"])
    )
    with pytest.raises(UserError, match="the task pairs makes 16 of 8 examples"):
        simclr(forward, pairs, sizes=[7, 4]).loss(params_of(), {}, {"train": BATCH}, KEY, 0)
