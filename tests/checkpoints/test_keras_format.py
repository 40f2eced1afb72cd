"""Keras' h5 files: read and written back in their own format; damaged, foreign and incomplete ones are refused."""

import json

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest

from tests.models.reference import leaf_shapes, make_model
from tljax.base.errors import UserError
from tljax.checkpoints.convert import collections_of
from tljax.checkpoints.keras_format import describe, open_tensors, write_tensors
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.heads import Classifier

REAL = "squeezenet1.1_keras/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
TINY = {
    "vgg": dict(widths=[2, 3, 3, 4, 4], depths=[1, 1, 2, 2, 2], hidden_size=5, grid=1, num_labels=3),
    "squeezenet": dict(squeeze_widths=[2, 3], expand_widths=[3, 4], stem_width=4, ceil_mode=False, num_labels=3),
    "inception": dict(divisor=16, norm_scale=False, count_padding=False, num_labels=3),
}
ARCHITECTURES = {"vgg": "VGG", "squeezenet": "SqueezeNet", "inception": "Inception3"}
SPELLINGS = {"keras": "model.weights.h5", "keras_legacy": "model.h5"}


def random_model(name, spelling, **entries):
    """(model, variables) as if they had come in `spelling`."""
    entries = {**TINY[name], **entries, **({"weights_format": spelling} if spelling else {})}
    model = make_model(name, entries, ARCHITECTURES[name])
    source = {"model_type": name, "architectures": [ARCHITECTURES[name]], **entries}
    generator = np.random.default_rng(0)
    flat = {path: generator.uniform(0.5, 1, shape).astype(np.float32) for path, shape in leaf_shapes(model).items()}
    return model._replace(source=json.dumps(source)), {**collections_of(flat), "extras": {}}


def same(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", TINY)
def test_out_and_in_again(tmp_path, name, spelling):
    """From the folder with its config.json, and from the file alone, which tells everything."""
    model, variables = random_model(name, spelling)
    folder = save_pretrained(model, variables, tmp_path / "out", classes=("a", "b", "c"))
    assert {path.name for path in folder.iterdir()} == {"config.json", SPELLINGS[spelling]}
    loaded = load_pretrained(folder)
    assert loaded.model.config == model.config and loaded.model.head == model.head
    assert same(loaded.variables, variables)
    assert json.loads(loaded.model.source)["id2label"] == {"0": "a", "1": "b", "2": "c"}
    (folder / "config.json").unlink()
    alone = load_pretrained(folder / SPELLINGS[spelling], family=name)
    assert alone.model.config == model.config and same(alone.variables, variables)
    assert json.loads(alone.model.source)["weights_format"] == spelling


def test_the_real_file_comes_back(weights_dir, tmp_path):
    """Layers without weights and Keras 1's own names too; with a new head as a layer of its own."""
    pretrained = load_pretrained(weights_dir / REAL, family="squeezenet")
    folder = save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    with h5py.File(weights_dir / REAL) as theirs, h5py.File(folder / "model.h5") as ours:
        names = list(theirs.attrs["layer_names"])
        assert list(ours.attrs["layer_names"]) == names
        for layer in names:
            weights = list(theirs[layer].attrs["weight_names"])
            assert list(ours[layer].attrs["weight_names"]) == weights
            assert all(np.array_equal(ours[layer][weight], theirs[layer][weight]) for weight in weights)
    assert same(load_pretrained(folder).variables, pretrained.variables)

    head = {"out": {"kernel": np.ones((512, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    params = {**pretrained.variables["params"], "head": head}
    tuned = pretrained.model._replace(head=Classifier(2))
    folder = save_pretrained(tuned, {**pretrained.variables, "params": params}, tmp_path / "out", classes=("a", "b"))
    assert describe(folder / "model.h5", {})["keras_layers"][-1] == [
        "predictions",
        ["predictions/kernel:0", "predictions/bias:0"],
    ]
    loaded = load_pretrained(folder)
    assert loaded.model.head.classes == 2 and same(loaded.variables["params"], params)


def test_a_torch_checkpoint_stays_one(tmp_path):
    model, variables = random_model("squeezenet", "", ceil_mode=True)
    folder = save_pretrained(model, variables, tmp_path / "out")
    assert (folder / "model.safetensors").is_file()
    loaded = load_pretrained(folder)
    assert "weights_format" not in json.loads(loaded.model.source)
    assert same(loaded.variables["params"], variables["params"])


def test_half_precision(tmp_path):
    values = np.arange(3).astype(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "a.weights.h5", {"layers/dense/vars/0": values})
    tensor = open_tensors(tmp_path / "a.weights.h5")["layers/dense/vars/0"]
    assert tensor.dtype == values.dtype and np.array_equal(tensor.read(), values)
    model, variables = random_model("squeezenet", "keras_legacy")
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), variables)
    with pytest.raises(UserError, match=r"legacy \.h5 holds no bfloat16"):
        save_pretrained(model, half, tmp_path / "out")


def test_numbers_are_sorted_as_numbers(tmp_path):
    names = [f"layers/conv2d{k}/vars/{j}" for k in ("", "_1", "_2", "_10", "_11") for j in (0, 1, 10)]
    write_tensors(tmp_path / "a.weights.h5", {name: np.zeros(1, np.float32) for name in reversed(names)})
    assert list(open_tensors(tmp_path / "a.weights.h5")) == names


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"a\.weights\.h5 is damaged or no HDF5 file of Keras"):
        open_tensors(path)
    write_tensors(path, {"layers/dense/vars/0": np.zeros((50, 50), np.float32)})
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match=r"a\.weights\.h5 is damaged"):
        open_tensors(path)
    with h5py.File(path, "w") as file:
        file["measurements"] = np.zeros(3)
    with pytest.raises(UserError, match=r"no `layers` and no `layer_names`\. It holds measurements"):
        open_tensors(path)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv1"]
        file.create_group("conv1").attrs["weight_names"] = [b"conv1/kernel:0"]
    with pytest.raises(UserError, match=r"damaged or no HDF5 file of Keras: 'conv1/conv1/kernel:0 is missing'"):
        open_tensors(path)
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = h5py.ExternalLink("other.h5", "x")
        file["layers/dense_1/vars/0"] = np.zeros(3)
    assert list(open_tensors(path)) == ["layers/dense_1/vars/0"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_network_and_missing_layers(tmp_path, spelling):
    model, variables = random_model("squeezenet", spelling)
    file = save_pretrained(model, variables, tmp_path / "out") / SPELLINGS[spelling]
    with pytest.raises(UserError, match="no weights of a VGG"):
        load_pretrained(file, family="vgg")
    names = {"keras": "layers/conv2d_5/vars/0", "keras_legacy": "fire3/expand1x1/vars/0"}
    tensors = {name: tensor.read() for name, tensor in open_tensors(file).items()}
    del tensors[names[spelling]]
    (file.parent / "config.json").write_text(model.source)
    if spelling == "keras":
        write_tensors(file, tensors)
    else:
        write_tensors(file, {n: x for n, x in tensors.items() if not n.startswith("fire3/expand1x1")}, [])
    with pytest.raises(UserError, match=rf"do not fit the model:[^$]*{names[spelling]} is missing"):
        load_pretrained(file.parent)
