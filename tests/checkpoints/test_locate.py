"""Where checkpoints are: what is found, and what is said about what is not."""

import sys

import pytest

from tljax.base.errors import UserError
from tljax.checkpoints.locate import locate


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out, with one repository, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--someone--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (repository / "refs").mkdir()
    for reference in ("main", "v2"):
        (repository / "refs" / reference).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("revision", ["", "@v2", f"@{'0123456789abcdef' * 2}01234567"])
def test_a_repository_in_the_cache_needs_no_network(hub, revision):
    assert locate(f"hf:someone/model{revision}") == hub


@pytest.mark.parametrize("name", ["someone/other", "someone/model@v3"])
def test_offline_one_line_names_the_cache_and_the_flag(hub, name):
    with pytest.raises(UserError) as caught:
        locate(f"hf:{name}")
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in (f"hf:{name}", str(hub.parents[2]), "HF_HUB_OFFLINE is set"))


def test_a_name_that_no_hub_can_have_is_said_to_be_one(hub):
    with pytest.raises(UserError, match="not a name of the form hf:owner/name"):
        locate("hf:a/b/c")


def test_a_folder_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "weights_of_mine"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:weights_of_mine/model") == package / "model"
    assert "weights_of_mine" not in sys.modules
    with pytest.raises(UserError, match=r"has no 'modle'.*Did you mean 'model'"):
        locate("package:weights_of_mine/modle")
    with pytest.raises(UserError, match="no Python package 'weights_of_yours' is installed"):
        locate("package:weights_of_yours/model")


def test_paths_variables_and_the_nearest_sibling(tmp_path, monkeypatch):
    (tmp_path / "resnet20").mkdir()
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    for text in (str(tmp_path / "resnet20"), "$SOMEWHERE/resnet20", f"file://{tmp_path}/resnet20"):
        assert locate(text) == tmp_path / "resnet20"
    with pytest.raises(UserError, match="Did you mean 'resnet20'"):
        locate(tmp_path / "resnet2O" / "model.safetensors")
    with pytest.raises(UserError, match="NOWHERE is not set"):
        locate("$NOWHERE/resnet20")
    with pytest.raises(UserError, match="From the hub: hf:someone/model"):
        locate("someone/model")


def test_other_file_systems_are_copied_once_into_the_cache(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    wanted, others = ("config.json", "model.safetensors", "1_Dense/a.json"), ("a.bin", "onnx/model.json", "photo.png")
    memory.pipe({f"/bucket/model/{name}": name.encode() for name in (*wanted, *others)})
    try:
        folder = locate("memory://bucket/model")
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        assert names == ["1_Dense/a.json", "config.json", "model.safetensors"]
        assert (folder / "config.json").read_text() == "config.json"
        assert locate("memory://bucket/model") == folder
        assert locate("memory://bucket/model/config.json").read_text() == "config.json"
        memory.pipe({"/bucket/model/config.json": b"changed"})
        assert (locate("memory://bucket/model") / "config.json").read_text() == "changed"
        with pytest.raises(UserError, match="no checkpoint at memory://bucket/nothing"):
            locate("memory://bucket/nothing")
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_unknown_file_system_is_named():
    with pytest.raises(UserError, match="nosuch://a cannot be read: Protocol not known"):
        locate("nosuch://a")
