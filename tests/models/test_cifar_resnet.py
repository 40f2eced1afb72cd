"""The CIFAR ResNets against a PyTorch network of the same names, and the real ResNet-20."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.models.cifar_resnet import ARCHITECTURE, FAMILY, configure, infer
from tljax.models.forward import forward


class TorchBlock(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.missing = stride, after - before

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.missing:
            low = self.missing // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.missing - low))
        return F.relu(x + y)


class TorchResNet(nn.Module):
    def __init__(self, blocks=3, widths=(16, 32, 64), channels=3, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for i, width in enumerate(widths):
            chain = [TorchBlock(before if j == 0 else width, width, 2 if i and j == 0 else 1) for j in range(blocks)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*chain))
            before = width
        self.linear = nn.Linear(before, classes)
        self.stages = len(widths)

    def forward(self, x):
        hidden = [F.relu(self.bn1(self.conv1(x)))]
        for i in range(self.stages):
            hidden.append(getattr(self, f"layer{i + 1}")(hidden[-1]))
        pooled = hidden[-1].mean((2, 3))
        return hidden, pooled, self.linear(pooled)


def infer_shapes(state: dict) -> dict:
    return infer({name: tuple(tensor.shape) for name, tensor in state.items()})


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(blocks=2, widths=(5, 8, 15), channels=1, classes=3),
        dict(blocks=1, widths=(4, 4), channels=2, classes=2),
    ],
    ids=["resnet20", "odd widths, grey", "two stages, equal widths"],
)
def test_equals_torch(options):
    torch.manual_seed(0)
    theirs = TorchResNet(**options).eval()
    random_norms(theirs)
    state = theirs.state_dict()
    entries = infer_shapes(state)
    model = make_model("cifar_resnet", entries, entries["architectures"][0])
    variables = import_weights(model, state, architecture=ARCHITECTURE)
    pixels = np.random.default_rng(0).normal(size=(2, 19, 32, options.get("channels", 3))).astype(np.float32)
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        hidden, pooled, logits = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    for a, b in zip(ours["hidden_states"], hidden, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["pooled"], pooled) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5


def test_training_moves_statistics_as_torch_does():
    theirs = TorchResNet(blocks=1, widths=(4, 8), classes=2)
    random_norms(theirs)
    entries = infer_shapes(theirs.state_dict())
    model = make_model("cifar_resnet", entries, ARCHITECTURE)
    variables = import_weights(model, theirs.state_dict(), architecture=ARCHITECTURE)
    theirs.train()
    step = jax.jit(lambda v, x: forward(model, v, {"pixel_values": x}, train=model.backbone.stages)[1])
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).normal(1, 2, (4, 8, 8, 3)).astype(np.float32)
        variables = {**variables, **step(variables, pixels)}
        theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    after = import_weights(model, theirs.state_dict(), architecture=ARCHITECTURE)["batch_stats"]
    pairs = zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(after), strict=True)
    assert all(np.abs(a - b).max() / np.abs(b).max() <= 1e-5 for a, b in pairs)


@pytest.mark.parametrize("depth, file", [(20, "resnet20-12fca82f.th"), (44, "resnet44-014dd654.th")])
def test_the_real_weights_equal_torch(weights_dir, depth, file):
    state = torch.load(weights_dir / "resnet_cifar10" / file, map_location="cpu")["state_dict"]
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    entries = infer_shapes(state)
    assert FAMILY.configure(entries) == FAMILY.configure(FAMILY.variants[f"resnet{depth}"])
    theirs = TorchResNet(blocks=(depth - 2) // 6).eval()
    theirs.load_state_dict(state)
    model = make_model("cifar_resnet", entries, entries["architectures"][0])
    variables = import_weights(model, state, architecture=ARCHITECTURE)
    pixels = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        hidden, _, logits = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    for a, b in zip(ours["hidden_states"], hidden, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5


def test_other_weights_are_refused():
    with pytest.raises(UserError, match="no weights of a CIFAR ResNet"):
        infer({"conv1.weight": (64, 3, 7, 7), "layer1.0.downsample.0.weight": (1, 1, 1, 1)})
    with pytest.raises(UserError, match="only ever add channels"):
        configure({"widths": [32, 16]})
