"""A toy model in JAX and in torch, and batches with padding, that the tests of semi-supervised methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.tasks.classification import classification
from tljax.tasks.spec import TaskSpec

TASK = classification(TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",)))
KEY = jax.random.key(0)
KINDS = {"train": "labelled", "unlabelled": "unlabelled"}
SHAPES = {"logits": jax.ShapeDtypeStruct((1, 3), jnp.float32)}


def random_params(seed: int = 0) -> dict:
    """Two dense layers, the second of which is the head."""
    draw = np.random.default_rng(seed).normal
    first, second = draw(size=(5, 4)), draw(size=(4, 3))
    return {"backbone": {"kernel": jnp.float32(first)}, "head": {"kernel": jnp.float32(1.5 * second)}}


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    """tanh(x A) B; twice that in training, so that the two modes differ. It counts its passes where the state does."""
    hidden = jnp.tanh(inputs["x"] @ params["backbone"]["kernel"])
    logits = hidden @ params["head"]["kernel"] * (2 if train else 1)
    counted = {"passes": state["passes"] + 1} if "passes" in state else {}
    return {"hidden": hidden, "logits": logits}, {**state, **counted}


def torch_params(params) -> dict:
    """The same parameters as torch leaves that want a gradient."""
    return {wing: torch.tensor(np.asarray(params[wing]["kernel"]), requires_grad=True) for wing in ("backbone", "head")}


def torch_logits(params, x, *, train: bool = True):
    """As `forward`."""
    return torch.tanh(torch.tensor(np.asarray(x)) @ params["backbone"]) @ params["head"] * (2 if train else 1)


def make_batches(*views: str, seed: int = 0, rows: int = 8, padding: int = 2, count: int = 20) -> dict:
    """A labelled batch of 4 and an unlabelled one of `rows`, whose last `padding` are padding."""
    draw = np.random.default_rng(seed)
    x = lambda n: {"x": draw.normal(size=(n, 5)).astype(np.float32)}  # noqa: E731
    real = rows - padding
    inputs = x(rows)
    unlabelled = {
        "weight": np.array([1.0] * real + [0.0] * padding, np.float32),
        "index": np.array([*draw.permutation(count)[:real], *[-1] * padding], np.int32),
    }
    unlabelled |= {"views": {name: x(rows) for name in views}} if views else {"inputs": inputs}
    train = {
        "inputs": x(4),
        "targets": np.array([0, 1, 2, 1], np.int32),
        "weight": np.array([1, 2, 1, 0], np.float32),
        "index": np.arange(4, dtype=np.int32),
    }
    return {"train": train, "unlabelled": unlabelled}


def run(method, batches, *, params=None, state=None, step=0, stats=None):
    """(losses divided by their weights, gradient of their sum, state, metrics), in one compiled call."""
    params = random_params() if params is None else params
    state = {"passes": 0, "batch_stats": stats or {}, "method": {} if state is None else state}

    def total(params, batches, state, step):
        found, state, metrics = method.loss(params, state, batches, KEY, step)
        values = {name: loss.sum / jnp.maximum(loss.weight, 1e-9) for name, loss in found.items()}
        return sum(values.values()), (values, state, metrics)

    gradient, (values, state, metrics) = jax.jit(jax.grad(total, has_aux=True))(params, batches, state, step)
    return values, gradient, state, metrics


def torch_task(params, batch):
    """The supervised loss: the weighted mean of the cross entropies."""
    each = torch.nn.functional.cross_entropy(
        torch_logits(params, batch["inputs"]["x"]), torch.tensor(batch["targets"]).long(), reduction="none"
    )
    weight = torch.tensor(batch["weight"])
    return (each * weight).sum() / weight.sum()


def check_gradient(gradient, params, loss, scale: float = 1.0) -> None:
    """Whether `gradient` is that of the torch `loss` with respect to torch's `params`."""
    wanted = torch.autograd.grad(loss * scale, [params["backbone"], params["head"]])
    for wing, value in zip(("backbone", "head"), wanted, strict=True):
        np.testing.assert_allclose(gradient[wing]["kernel"], value.numpy(), rtol=1e-4, atol=1e-6)


def spoil_padding(batches: dict) -> dict:
    """The same batches with other numbers in the rows of weight 0."""
    spoilt = jax.tree.map(np.copy, batches)
    for batch in spoilt.values():
        for inputs in batch["views"].values() if "views" in batch else [batch["inputs"]]:
            inputs["x"][batch["weight"] == 0] = 7.0
    return spoilt


def train_reports(config: dict, steps: int) -> list[dict]:
    """What each of `steps` steps reports: its losses and metrics."""
    job = make_job(build(config))
    state, batches, reports = job.state, job.batches(0), []
    for _ in range(steps):
        state, report = job.step(state, next(batches))
        reports.append(jax.tree.map(float, report))
    return reports


def save_stripes(folder, count: int = 48) -> dict:
    """A config that trains a tiny ResNet on 4 labelled images of two classes, with `count` more without labels."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = draw.integers(0, 100, (count, 8, 8, 3)).astype(np.uint8)
    images[labels == 0, ::2] += 120  # stripes across
    images[labels == 1, :, ::2] += 120  # stripes down
    np.savez(folder / "few.npz", image=images[:4], label=labels[:4])
    np.savez(folder / "all.npz", image=images, label=labels)
    few, whole = (f"npz:{folder / name}.npz" for name in ("few", "all"))
    return {
        "model": {
            "family": "cifar_resnet",
            "variant": {"blocks": 1, "widths": [4, 4, 8]},
            "processor": {"size": 8, "mean": [0.5], "std": [0.5]},
        },
        "optim": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "data": {"train": {"source": few}, "unlabelled": {"source": whole, "batch_size": 8}},
        "train": {"batch_size": 4, "steps": 100},
        "mesh": {"data": 1},
    }
