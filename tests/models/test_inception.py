"""Inception v3 against Keras at its true shape, and against torch layers with torchvision's names."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.keras_files import keras_model, predict, save_keras, save_legacy
from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.models.inception import configure, infer

DIVISOR = 16


class TorchConv(nn.Module):
    def __init__(self, before, width, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(before, width // DIVISOR, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width // DIVISOR, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class TorchBlock(nn.Module):
    """One of torchvision's blocks: named convolutions, and a list of paths through them."""

    def __init__(self, before, convs, paths):
        super().__init__()
        self.paths, widths = paths, {}
        source = dict.fromkeys(convs)
        for path in paths:
            previous = None
            for step in path:
                if isinstance(step, tuple):
                    source.update(dict.fromkeys(step, previous))
                elif step in convs:
                    source[step], previous = previous, step
        for name, (width, *rest) in convs.items():
            widths[name] = width // DIVISOR
            inner = before if source[name] is None else convs[source[name]][0] // DIVISOR
            setattr(self, name, TorchConv(inner, width, *rest))

    def forward(self, x):
        results = []
        for path in self.paths:
            y = [x]
            for step in path:
                if isinstance(step, tuple):
                    y = [getattr(self, name)(y[0]) for name in step]
                elif step == "mean":
                    y = [F.avg_pool2d(y[0], 3, 1, 1)]
                elif step == "max":
                    y = [F.max_pool2d(y[0], 3, 2)]
                else:
                    y = [getattr(self, step)(y[0])]
            results += y
        return torch.cat(results, 1)


def first(before, pool):
    convs = {
        "branch1x1": (64, 1),
        "branch5x5_1": (48, 1),
        "branch5x5_2": (64, 5, 1, 2),
        "branch3x3dbl_1": (64, 1),
        "branch3x3dbl_2": (96, 3, 1, 1),
        "branch3x3dbl_3": (96, 3, 1, 1),
        "branch_pool": (pool, 1),
    }
    double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return TorchBlock(before, convs, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, ["mean", "branch_pool"]])


def second(width):
    wide, high = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    convs = {"branch1x1": (192, 1), "branch7x7_1": (width, 1), "branch7x7_2": (width, *wide)}
    convs |= {"branch7x7_3": (192, *high), "branch7x7dbl_1": (width, 1), "branch7x7dbl_2": (width, *high)}
    convs |= {"branch7x7dbl_3": (width, *wide), "branch7x7dbl_4": (width, *high), "branch7x7dbl_5": (192, *wide)}
    single, double = ([f"branch7x7{kind}_{k}" for k in range(1, n)] for kind, n in (("", 4), ("dbl", 6)))
    convs["branch_pool"] = (192, 1)
    return TorchBlock(768 // DIVISOR, convs, [["branch1x1"], single, double, ["mean", "branch_pool"]])


def third(before):
    wide, high = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    convs = {"branch1x1": (320, 1), "branch3x3_1": (384, 1), "branch3x3_2a": (384, *wide), "branch3x3_2b": (384, *high)}
    convs |= {"branch3x3dbl_1": (448, 1), "branch3x3dbl_2": (384, 3, 1, 1), "branch3x3dbl_3a": (384, *wide)}
    convs |= {"branch3x3dbl_3b": (384, *high), "branch_pool": (192, 1)}
    single = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    double = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return TorchBlock(before // DIVISOR, convs, [["branch1x1"], single, double, ["mean", "branch_pool"]])


class TorchInception(nn.Module):
    def __init__(self, classes):
        super().__init__()
        d = DIVISOR
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = TorchConv(3, 32, 3, 2), TorchConv(32 // d, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = TorchConv(32 // d, 64, 3, 1, 1), TorchConv(64 // d, 80, 1)
        self.Conv2d_4a_3x3 = TorchConv(80 // d, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = first(192 // d, 32), first(256 // d, 64), first(288 // d, 64)
        convs = {"branch3x3": (384, 3, 2), "branch3x3dbl_1": (64, 1), "branch3x3dbl_2": (96, 3, 1, 1)}
        convs["branch3x3dbl_3"] = (96, 3, 2)
        double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
        self.Mixed_6a = TorchBlock(288 // d, convs, [["branch3x3"], double, ["max"]])
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(second, (128, 160, 160, 192))
        self.AuxLogits = nn.Linear(3, 4)
        convs = {"branch3x3_1": (192, 1), "branch3x3_2": (320, 3, 2), "branch7x7x3_1": (192, 1)}
        convs |= {"branch7x7x3_2": (192, (1, 7), 1, (0, 3)), "branch7x7x3_3": (192, (7, 1), 1, (3, 0))}
        convs["branch7x7x3_4"] = (192, 3, 2)
        long = [f"branch7x7x3_{k}" for k in range(1, 5)]
        self.Mixed_7a = TorchBlock(768 // d, convs, [["branch3x3_1", "branch3x3_2"], long, ["max"]])
        self.Mixed_7b, self.Mixed_7c = third(1280), third(2048)
        self.fc = nn.Linear(2048 // d, classes)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x, self.fc(x.mean((2, 3)))


def test_equals_torch():
    torch.manual_seed(0)
    theirs = TorchInception(5).eval()
    random_norms(theirs)
    state = theirs.state_dict()
    entries = infer({name: tuple(tensor.shape) for name, tensor in state.items()})
    model = make_model("inception", entries, "Inception3")
    variables = import_weights(model, state, architecture="Inception3")
    pixels = np.random.default_rng(0).normal(size=(2, 107, 140, 3)).astype(np.float32)
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        hidden, logits = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    assert model.config == configure({"divisor": DIVISOR})
    assert distance(ours["hidden"], hidden) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5


@pytest.mark.long
def test_equals_keras_at_full_depth(tmp_path):
    """In both formats; the layers of the legacy file are numbered from 5 on, as in a session with other models."""
    theirs = keras_model("InceptionV3", classifier_activation=None, classes=10)
    pretrained = load_pretrained(save_keras(theirs, tmp_path), family="inception")
    assert pretrained.model.config == configure({"norm_scale": False, "count_padding": False})
    pixels = np.random.default_rng(0).uniform(-1, 1, size=(1, 299, 299, 3)).astype(np.float32)
    ours = run(pretrained.model, pretrained.variables, {"pixel_values": pixels})
    reference = predict(theirs, pixels)
    assert np.abs(ours["logits"] - reference).max() <= 1e-4 * np.abs(reference).max()
    legacy = load_pretrained(save_legacy(theirs, tmp_path, first=5), family="inception")
    assert legacy.model.config == pretrained.model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, legacy.variables, pretrained.variables))


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="no weights of an Inception v3"):
        infer({"conv1.weight": (3, 3, 3, 3)})
    with pytest.raises(UserError, match="divisor is 3, and must divide 16"):
        configure({"divisor": 3})
