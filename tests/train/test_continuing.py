"""Continuing under other circumstances: what differs is said exactly, and refused unless the user names it."""

import errno
import json
import os

import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.base.errors import UserError
from tljax.base.files import write_whole
from tljax.cli.main import main
from tljax.train.records import Records

HALF = ["--config.train.steps=4", "--config.optim.schedule=constant", "--config.optim.warmup=0.0"]
WHOLE = ["--config.train.steps=8", *HALF[1:]]
HEAD = "--config.strategy={'linear_probe': {}}"


@pytest.fixture
def parts(tmp_path):
    """(folder, command line without the options that change)."""
    path = save_config(tmp_path / "config.py", save_tiny_bert(tmp_path / "bert"), save_csv(tmp_path / "data.csv"))
    return tmp_path, ["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]


def refused(command, capsys) -> str:
    """What is said where the command is refused."""
    assert main(command) == 2
    return " ".join(capsys.readouterr().err.split())


def losses(folder) -> list[float]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in found if line["kind"] == "train"]


def test_other_data_under_the_same_name_are_found(parts, capsys):
    folder, command = parts
    assert main([*command, *HALF]) == 0
    save_csv(folder / "data.csv", 44, seed=3)
    said = refused([*command, *WHOLE], capsys)
    for line in ("data.train.examples: 32 → 36", "data.train.content:", "data.test.examples: 40 → 44", "--allow=data"):
        assert line in said
    assert len(losses(folder / "run")) == 2, "nothing was trained"
    assert main([*command, *WHOLE, "--allow=data"]) == 0
    assert "allowed by --allow=data: data.train.examples: 32 → 36" in " ".join(capsys.readouterr().err.split())


def test_another_pretrained_tree_is_named_leaf_by_leaf(parts, capsys):
    from safetensors.numpy import load_file, save_file

    folder, command = parts
    assert main([*command, *HALF]) == 0
    path = folder / "bert" / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.1.output.dense.bias"] = tensors["encoder.layer.1.output.dense.bias"] + 1
    save_file(tensors, path, metadata={"format": "pt"})
    said = refused([*command, *WHOLE], capsys)
    assert "1 of its" in said and "leaves differ: backbone/block1/mlp/down/bias" in said and "--allow=model" in said
    assert main([*command, *WHOLE, "--allow=model"]) == 0


def test_another_mesh_is_refused_and_goes_on_when_it_is_named(parts, capsys):
    folder, command = parts
    assert main([*command, *HALF]) == 0
    mesh = "--config.mesh={'data': 2, 'fsdp': 2}"
    said = refused([*command, *WHOLE, mesh], capsys)
    assert "mesh.data: 1 → 2" in said and "mesh.fsdp: None → 2" in said and "--allow=mesh" in said
    assert main([*command, *WHOLE, mesh, "--allow=mesh"]) == 0
    assert "mesh.axes.fsdp: None → 2" in " ".join(capsys.readouterr().err.split())
    assert main(["train", *command[1:2], f"--workdir={folder / 'one'}", *WHOLE]) == 0
    # Dropout draws the same numbers on every mesh; what is left is the order of sums.
    np.testing.assert_allclose(losses(folder / "run"), losses(folder / "one"), rtol=1e-4)


def test_more_leaves_may_join_and_none_may_be_left_behind(parts, capsys):
    _folder, command = parts
    assert main([*command, *HALF, HEAD]) == 0
    said = refused([*command, *WHOLE], capsys)
    assert "strategy." in said and "--allow=strategy" in said
    assert main([*command, *WHOLE, "--allow=strategy"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "leaves would train anew: backbone/block0/" in said and "begin anew" in said
    assert main([*command, *WHOLE, HEAD, "--allow=strategy"]) == 2
    assert "what no longer trains would lose what it learnt" in " ".join(capsys.readouterr().err.split())


def test_only_what_is_named_is_allowed(parts, capsys):
    _folder, command = parts
    assert main([*command, *HALF]) == 0
    said = refused([*command, *WHOLE, "--config.optim.learning_rate=0.1", "--config.seed=1", "--allow=seed"], capsys)
    assert "optim.learning_rate: 0.003 → 0.1" in said and "--allow=optim" in said
    assert "Did you mean 'data'" in refused([*command, "--allow=dta"], capsys)


def test_a_machine_with_other_versions_is_said_and_not_refused(parts, capsys, monkeypatch):
    _folder, command = parts
    assert main([*command, *HALF]) == 0
    from tljax.train import continuing

    there = continuing.version
    monkeypatch.setattr(continuing, "version", lambda name: "9.9" if name == "optax" else there(name))
    assert main([*command, *WHOLE]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "another machine or version than before" in said and "→ '9.9'" in said


def test_a_damaged_config_is_named(parts, capsys):
    folder, command = parts
    assert main([*command, *HALF]) == 0
    path = folder / "run" / "config.json"
    path.write_text(path.read_text()[:100])
    assert "config.json is damaged" in refused([*command, *WHOLE], capsys)
    path.unlink()
    assert main([*command, *WHOLE]) == 0, "the checkpoints say themselves what they belong to"


def test_lost_records_are_said_and_the_lines_that_are_left_stay(parts, capsys):
    folder, command = parts
    assert main([*command, *HALF]) == 0
    path = folder / "run" / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content.splitlines(keepends=True)[0]) + 20])
    assert main([*command, *WHOLE]) == 0
    assert "bytes of" in (said := " ".join(capsys.readouterr().err.split())) and "are missing" in said
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 6, 8]


def test_records_are_cut_at_whole_lines(tmp_path):
    records = Records(tmp_path)
    records.write("train", step=1)
    first = records.settled()
    records.write("train", step=2)
    assert records.truncate(first) == 0
    assert records.settled() == first
    assert records.truncate(first + 7) == 7
    assert json.loads(records.path.read_text()) == {"kind": "train", "step": 1}
    records.close()


@pytest.mark.parametrize("above", [True, False], ids=["no folder above it", "a file above it"])
def test_a_run_folder_that_cannot_be_made_is_said(parts, capsys, monkeypatch, above):
    folder, command = parts
    place = folder / "place" / "run"
    if above:
        made = os.mkdir

        def refuse(path, *options, **more):
            if str(path).startswith(str(folder / "place")):
                raise OSError(errno.EROFS, "Read-only file system", str(folder / "place"))
            return made(path, *options, **more)

        monkeypatch.setattr(os, "mkdir", refuse)
    else:
        place.parent.write_text("a file")
    assert main([*command[:2], f"--workdir={place}", *HALF]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"The run folder {place} cannot be written or read" in said and "Traceback" not in said


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.json", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_differences_are_told_apart_by_section():
    from tljax.train.continuing import Facts, compared, described, refuse

    run = described({"optim": {"name": "sgd"}}, Facts({"a": "1"}, {"train": {"examples": 3}}, {"axes": {"data": 1}}))
    digests = {"pretrained": "p", "live": "l"}
    meta = {"digests": digests, "run": json.loads(json.dumps(run))}
    assert compared(meta, ["a"], ["a"], run=run, digests=digests) == []
    other = {"pretrained": "p", "live": "m"}
    (found,) = compared(meta, ["a"], ["a"], run=run, digests=other)
    assert found.section == "strategy" and "the steps from which on they do are others" in found.text
    found = compared(meta, ["a", "b"], ["a", "c"], run=run, digests=other)
    assert [each.text for each in found] == ["1 leaf would train anew: c", "1 leaf would no longer train: b"]
    with pytest.raises(UserError, match="1 leaf would no longer train: b"):
        refuse("run", found, ["data"])
    refuse("run", found, ["strategy"])
