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


def test_a_name_that_stands_twice_is_refused(tmp_path):
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="names 'a' twice"):
        safetensors_format.open_tensors(path)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../elsewhere.safetensors"}, "not a file beside it"),
        ({"a": "one.safetensors"}, r"one\.safetensors holds b, which the index leaves out"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, r"one\.safetensors holds b, which the index places in two"),
        (["a"], "not an index"),
    ],
)
def test_an_index_that_its_shards_contradict_is_refused(tmp_path, places, message):
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=message):
        safetensors_format.open_tensors(index)


def test_torch_dtypes_without_a_storage_of_their_own(tmp_path):
    tensors = {"a": torch.arange(6).to(torch.uint16).reshape(2, 3).t(), "b": torch.ones(3).to(torch.float8_e4m3fn)}
    torch.save(tensors, tmp_path / "model.pt")
    found = torch_format.open_tensors(tmp_path / "model.pt")
    assert all(_same(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_in_lists_are_read_and_equal_names_refused(tmp_path, zipped):
    path = tmp_path / "model.pt"
    torch.save({"a": [torch.ones(2), {"b": torch.zeros(1)}]}, path, _use_new_zipfile_serialization=zipped)
    assert torch_format.open_tensors(path).keys() == {"a.0", "a.1.b"}
    torch.save({"a.b": torch.ones(2), "a": {"b": torch.zeros(1)}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="several tensors of the same name"):
        torch_format.open_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x06\x00\x00\x00markerK\x01sb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__N}s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.fromkeys\x93.",
        b"\x80\x02" + b"(" * 3000 + b"l" * 3000 + b".",
    ],
    ids=["attribute", "defaults", "class", "instance", "cycle", "dotted", "deep"],
)
def test_pickles_that_set_attributes_or_never_end_are_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", content)
    before = {name: vars(function).copy() for name, function in torch_format.REBUILD.items()}
    with pytest.raises(UserError, match=r"model\.pt"):
        torch_format.open_tensors(path)
    assert {name: vars(function) for name, function in torch_format.REBUILD.items()} == before


@pytest.mark.parametrize(
    "change",
    [
        dict(offset=4),
        dict(offset=-1),
        dict(size=(3, 3)),
        dict(stride=(-1, 1)),
        dict(stride=(1,)),
        dict(size=(2.0, 2)),
        dict(count=100),
    ],
    ids=str,
)
def test_tensors_beyond_their_storage_are_refused_when_the_file_is_opened(tmp_path, change):
    marker = object()
    given = {"offset": 0, "size": (2, 2), "stride": (2, 1), "count": 4, **change}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", given["count"]) if value is marker else None

    class Lie:
        def __reduce__(self):
            arguments = (marker, given["offset"], given["size"], given["stride"], False, {})
            return torch._utils._rebuild_tensor_v2, arguments

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        with archive.open("model/data.pkl", "w") as file:
            Pickler(file, 2).dump({"a": Lie()})
        archive.writestr("model/data/0", bytes(16))
    with pytest.raises(UserError, match=r"model\.pt is damaged"):
        torch_format.open_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_orders_and_dtypes(tmp_path, save):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.ones((2, 2), np.float16),
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3)),
    }
    save(tmp_path / "model.npz", **arrays)
    found = npz_format.open_tensors(tmp_path / "model.npz")
    for name, array in arrays.items():
        assert found[name].dtype == found[name].read().dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)


def test_a_bit_flipped_in_a_packed_npz_is_found(tmp_path):
    np.savez_compressed(tmp_path / "model.npz", a=np.random.default_rng(0).normal(size=1000))
    content = bytearray((tmp_path / "model.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.npz"):
        npz_format.open_tensors(tmp_path / "model.npz")["a"].read()
