"""SqueezeNet against torch layers with torchvision's names, and the real Keras file against Keras' layers."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.keras_files import predict, randomise, save_keras
from tests.models.reference import distance, import_weights, make_model, run
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.squeezenet import POOLED_BEFORE, configure, infer

REAL = "squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"


class TorchFire(nn.Module):
    def __init__(self, before, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def torch_squeezenet(version, stem, kernel, squeezes, expands, classes, channels=3):
    layers, before = [nn.Conv2d(channels, stem, kernel, stride=2), nn.ReLU()], stem
    for i, (squeeze, expand) in enumerate(zip(squeezes, expands, strict=True)):
        if i in POOLED_BEFORE[version]:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        layers.append(TorchFire(before, squeeze, expand))
        before = 2 * expand
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    model.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(before, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return model.eval()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("1.1", 4, 3, (3, 4, 5, 3, 4), (5, 6, 4, 3, 5), 6), (53, 64)),
        (("1.0", 5, 7, (3, 4, 2, 3), (5, 3, 4, 2), 3, 2), (39, 70)),
    ],
    ids=["1.1", "1.0, two channels"],
)
def test_equals_torch(options, size):
    torch.manual_seed(0)
    theirs = torch_squeezenet(*options)
    state = theirs.state_dict()
    entries = infer({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert entries["version"] == options[0]
    model = make_model("squeezenet", entries, "SqueezeNet")
    variables = import_weights(model, state, architecture="SqueezeNet")
    pixels = np.random.default_rng(0).normal(size=(2, *size, entries["num_channels"])).astype(np.float32)
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        hidden = theirs.features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        logits = theirs.classifier(hidden).flatten(1)
    assert distance(ours["hidden"], hidden) <= 1e-5
    assert distance(ours["logits"], logits) <= 1e-5


def keras_squeezenet(size, classes=None):
    """Keras' layers in the order of the published file."""
    import keras
    from keras import layers

    keras.utils.clear_session()
    inputs = layers.Input((size, size, 3))
    x = layers.Conv2D(64, 3, strides=2, activation="relu")(inputs)
    config = configure({})
    for i, (squeeze, expand) in enumerate(zip(config.squeeze_widths, config.expand_widths, strict=True)):
        x = layers.MaxPooling2D(3, 2)(x) if i in POOLED_BEFORE["1.1"] else x
        x = layers.Conv2D(squeeze, 1, activation="relu")(x)
        sides = [layers.Conv2D(expand, k, padding="same", activation="relu")(x) for k in (1, 3)]
        x = layers.Concatenate()(sides)
    if classes is not None:
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(classes, 1, activation="relu")(x))
    return keras.Model(inputs, x)


def test_the_real_file_equals_keras(weights_dir, tmp_path):
    pretrained = load_pretrained(weights_dir / REAL, family="squeezenet")
    assert pretrained.model.config == configure({"ceil_mode": False}) and pretrained.model.head is None
    theirs = keras_squeezenet(98)
    import h5py

    with h5py.File(weights_dir / REAL) as file:
        groups = [file[layer] for layer in file.attrs["layer_names"] if len(file[layer].attrs["weight_names"])]
        values = [group[name][()] for group in groups for name in group.attrs["weight_names"]]
    for weight, value in zip(theirs.weights, values, strict=True):
        weight.assign(value)
    pixels = np.random.default_rng(0).uniform(-120, 150, size=(2, 98, 98, 3)).astype(np.float32)
    ours = run(pretrained.model, pretrained.variables, {"pixel_values": pixels})
    reference = predict(theirs, pixels)
    assert np.abs(ours["hidden"] - reference).max() <= 1e-4 * np.abs(reference).max()
    folder = save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    randomise(theirs).load_weights(folder / "model.h5")
    assert np.array_equal(predict(theirs, pixels), reference)


def test_equals_keras_with_its_classifier(tmp_path):
    theirs = randomise(keras_squeezenet(65, classes=7))
    pretrained = load_pretrained(save_keras(theirs, tmp_path), family="squeezenet")
    pixels = np.random.default_rng(0).normal(size=(2, 65, 65, 3)).astype(np.float32)
    ours = run(pretrained.model, pretrained.variables, {"pixel_values": pixels})
    reference = predict(theirs, pixels)
    assert np.abs(ours["logits"] - reference).max() <= 1e-4 * np.abs(reference).max()
    folder = save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    randomise(theirs, seed=1)
    theirs.load_weights(folder / "model.weights.h5")
    assert np.array_equal(predict(theirs, pixels), reference)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="no weights of a SqueezeNet"):
        infer({"conv1.weight": (3, 3, 3, 3)})
    with pytest.raises(UserError, match="no weights of a SqueezeNet"):
        infer({"layers/conv2d/vars/0": (3, 3, 3, 4), "layers/conv2d_1/vars/0": (3, 3, 4, 4)})
    with pytest.raises(UserError, match=r"version is '1\.2'"):
        configure({"version": "1.2"})
    with pytest.raises(UserError, match="equally long, with one entry a fire module"):
        configure({"squeeze_widths": [4], "expand_widths": [4, 5]})
