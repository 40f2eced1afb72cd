"""VGG against Keras at its true shape, and against torch layers with torchvision's names."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from tests.keras_files import keras_model, predict, save_keras, save_legacy
from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.models.vgg import configure, infer


def torch_vgg(widths, depths, batch_norm, *, grid=2, hidden=12, classes=5, channels=3):
    """torchvision's layers, in its order."""
    layers, before = [], channels
    for width, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), *([nn.BatchNorm2d(width)] * batch_norm), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    first = nn.Linear(before * grid * grid, hidden)
    dense = (first, nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout())
    model.classifier = nn.Sequential(*dense, nn.Linear(hidden, classes))
    model.pool = nn.AdaptiveAvgPool2d(grid)
    random_norms(model)
    return model.eval()


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (dict(widths=(4, 6), depths=(1, 2), batch_norm=True), (8, 8)),
        (dict(widths=(4, 5, 6), depths=(2, 1, 1), batch_norm=False, grid=3, channels=1), (40, 19)),
    ],
    ids=["batch norms", "grey, a map that the grid does not divide"],
)
def test_equals_torch(options, size):
    torch.manual_seed(0)
    theirs = torch_vgg(**options)
    state = theirs.state_dict()
    entries = infer(shapes_of(state))
    model = make_model("vgg", entries, "VGG")
    variables = import_weights(model, state, architecture="VGG")
    pixels = np.random.default_rng(0).normal(size=(2, *size, options.get("channels", 3))).astype(np.float32)
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        hidden = theirs.features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        logits = theirs.classifier(theirs.pool(hidden).flatten(1))
    assert distance(ours["hidden"], hidden) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5
    assert len(ours["hidden_states"]) == len(options["widths"])


@pytest.mark.parametrize("name", ["VGG16", "VGG19"])
def test_equals_keras_at_full_depth(tmp_path, name):
    theirs = keras_model(name, include_top=False)
    pretrained = load_pretrained(save_keras(theirs, tmp_path), family="vgg")
    pixels = np.random.default_rng(0).normal(0, 50, size=(1, 64, 64, 3)).astype(np.float32)
    ours = run(pretrained.model, pretrained.variables, {"pixel_values": pixels})
    reference = predict(theirs, pixels)
    assert np.abs(ours["hidden"] - reference).max() <= 1e-4 * np.abs(reference).max()
    depths = [2, 2, *[3 + (name == "VGG19")] * 3]
    assert pretrained.model.config == configure({"depths": depths, "fully_connected": False})
    legacy = load_pretrained(save_legacy(theirs, tmp_path), family="vgg")
    assert legacy.model.config == pretrained.model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, legacy.variables, pretrained.variables))


@pytest.mark.long
def test_equals_keras_with_its_dense_layers(tmp_path):
    """The order in which the map is flattened, at the true shape."""
    theirs = keras_model("VGG16", classifier_activation=None)
    pretrained = load_pretrained(save_keras(theirs, tmp_path), family="vgg")
    pixels = np.random.default_rng(0).normal(0, 50, size=(1, 224, 224, 3)).astype(np.float32)
    ours = run(pretrained.model, pretrained.variables, {"pixel_values": pixels})
    reference = predict(theirs, pixels)
    assert np.abs(ours["logits"] - reference).max() <= 1e-4 * np.abs(reference).max()
    assert pretrained.model.config == configure({}) and pretrained.model.head.classes == 1000


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="no weights of a VGG: none of"):
        infer({"conv1.weight": (3, 3, 3, 3)})
    with pytest.raises(UserError, match="8, 10, 13 or 16 convolutions, not 2"):
        infer({"layers/conv2d/vars/0": (3, 3, 3, 4), "layers/conv2d_1/vars/0": (3, 3, 4, 4)})
    wrong = {f"layers/conv2d{'_' * (k > 0)}{k or ''}/vars/0": (1, 1, 3, 4) for k in range(13)}
    with pytest.raises(UserError, match="a kernel is not 3×3"):
        infer(wrong)
    with pytest.raises(UserError, match="a kernel is not 3×3"):
        infer({"features.0.weight": (4, 3, 5, 5)})
    with pytest.raises(UserError, match="must be equally long"):
        configure({"widths": [4], "depths": [1, 2]})
