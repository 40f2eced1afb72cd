"""Foreign files: what they hold is read exactly, and what is wrong with them is said."""

import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tljax.base.errors import UserError
from tljax.checkpoints import npz_format, safetensors_format, torch_format


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "float32": base,
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "int64": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
    }


def _same(found, expected: torch.Tensor) -> bool:
    array = found.read()
    assert array.shape == tuple(expected.shape) == found.shape and array.dtype == found.dtype
    view = expected.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).tobytes() == view.tobytes()


def test_safetensors_of_every_dtype(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(_tensors(), path)
    found = safetensors_format.open_tensors(path)
    assert found.keys() == _tensors().keys()
    assert all(_same(found[name], tensor) for name, tensor in _tensors().items())
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16


def test_safetensors_shards_and_what_may_be_wrong_with_them(tmp_path):
    tensors = _tensors()
    names = list(tensors)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == shard}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = safetensors_format.open_tensors(index)
    assert all(_same(found[name], tensor) for name, tensor in tensors.items())
    index.write_text(json.dumps({"weight_map": {**places, "more": "model-0.safetensors"}}))
    with pytest.raises(UserError, match=r"places more in model-0\.safetensors, which does not hold it"):
        safetensors_format.open_tensors(index)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors.*not there"):
        safetensors_format.open_tensors(index)


@pytest.mark.parametrize("keep", [0, 4, 60, -1, -100])
def test_truncated_safetensors_are_named(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        safetensors_format.open_tensors(path)


def test_a_tampered_header_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(_tensors(), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"shape":[6,4]', b'"shape":[9,4]', 1))
    with pytest.raises(UserError, match="damaged"):
        safetensors_format.open_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_archives_with_views_and_shared_storages(tmp_path, zipped):
    tensors = _tensors()
    base = tensors["float32"]
    tensors.update(transposed=base.t(), tail=base[2:], column=base[:, 1], parameter=torch.nn.Parameter(base))
    path = tmp_path / "model.pth"
    torch.save({"epoch": 3, "state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    found = torch_format.open_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(_same(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_data_parallel_state_dict_loses_its_prefix(tmp_path, zipped):
    path = tmp_path / "model.pth"
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = torch_format.open_tensors(path)
    assert found.keys() == model.state_dict().keys()
    assert all(_same(found[name], tensor) for name, tensor in model.state_dict().items())


class _Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path, zipped):
    path, target = tmp_path / "model.pth", tmp_path / "it_ran"
    torch.save({"a": torch.ones(2), "b": _Malicious(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"model\.pth asks for .*never runs code"):
        torch_format.open_tensors(path)
    assert not target.exists()


def test_a_bare_malicious_pickle_never_runs(tmp_path):
    path, target = tmp_path / "model.pt", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps(_Malicious(target)))
    with pytest.raises(UserError, match="asks for"):
        torch_format.open_tensors(path)
    assert not target.exists()


def test_conjugate_views_are_refused_and_not_misread(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"negative": torch.randn(3, dtype=torch.complex64).conj().imag}, path)
    with pytest.raises(UserError, match="metadata"):
        torch_format.open_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_torch_archives_are_named(tmp_path, zipped, share):
    path = tmp_path / "model.pth"
    torch.save(_tensors(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"model\.pth"):
        torch_format.open_tensors(path)


def test_a_zip_that_is_no_archive_and_a_file_without_tensors(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        torch_format.open_tensors(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        torch_format.open_tensors(tmp_path / "b.pth")


def test_the_real_legacy_archive_equals_torchs_reading(weights_dir):
    path = weights_dir / "resnet_cifar10" / "resnet20-12fca82f.th"
    expected = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    found = torch_format.open_tensors(path)
    assert len(found) == len(expected)
    assert all(_same(found[name.removeprefix("module.")], tensor) for name, tensor in expected.items())


def test_npz_arrays_and_pickled_objects(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.float32(2)}
    np.savez(tmp_path / "model.npz", **arrays)
    found = npz_format.open_tensors(tmp_path / "model.npz")
    assert {name: tensor.shape for name, tensor in found.items()} == {"a/b": (2, 3), "c": ()}
    np.testing.assert_array_equal(found["a/b"].read(), arrays["a/b"])
    np.savez(tmp_path / "objects.npz", bad=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="bad hold pickled"):
        npz_format.open_tensors(tmp_path / "objects.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "model.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="not an npz"):
        npz_format.open_tensors(tmp_path / "broken.npz")
