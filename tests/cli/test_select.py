"""The verb `select` on tiny BERTs: a table, a file, a page; verified within a budget, and continued."""

import json

import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.cli.main import main
from tljax.cli.select import seconds_of


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    save_tiny_bert(folder / "one")
    save_tiny_bert(folder / "two", initializer_range=0.5)
    extra = f"""
    config.select = dict(
        checkpoints=dict(
            one=dict(),
            two=dict(model=dict(source={str(folder / "two")!r}), optim=dict(learning_rate=1e-3)),
        ),
        scores=("logme",),
        finalists=1,
        eta=4,
        strategies=dict(adapters=dict(strategy=dict(lora=dict(rank=2)))),
    )
    """
    return folder, save_config(folder / "config.py", folder / "one", save_csv(folder / "data.csv"), extra=extra)


@pytest.fixture(autouse=True)
def cache(parts, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(parts[0] / "cache"))


def test_scores_are_shown_and_kept_and_a_page_is_written(parts, tmp_path, capsys):
    _, config = parts
    workdir = tmp_path / "w"
    assert main(["select", f"--config={config}", f"--workdir={workdir}", "--checkpoints=one,two"]) == 0
    shown = capsys.readouterr().err
    for word in ("logme", "raw inputs", "block1", "advised:", "--config.strategy="):
        assert word in shown
    found = json.loads((workdir / "select.json").read_text())
    assert {each["name"] for each in found["checkpoints"]} == {"one", "two"} and found["verification"] is None
    page = (workdir / "select.html").read_text()
    assert found["recommendation"]["reasons"][0][:40] in page and "<svg" in page and "http-equiv" not in page
    assert not (workdir / "runs").exists()


def test_a_budget_verifies_and_the_same_command_goes_on_with_what_has_run(parts, tmp_path, capsys):
    _, config = parts
    workdir = tmp_path / "w"
    command = ["select", f"--config={config}", f"--workdir={workdir}", "--checkpoints=two", "--config.train.steps=2"]
    assert main([*command, "--budget=0.01s"]) == 0
    assert "3 of the rung did not run" in capsys.readouterr().err
    begun = json.loads((workdir / "select.json").read_text())["verification"]["rungs"]
    assert main([*command, "--budget=1h"]) == 0
    assert "the runs find two: " in capsys.readouterr().err
    whole = json.loads((workdir / "select.json").read_text())
    verified = whole["verification"]
    (rung,) = verified["rungs"]
    assert rung["steps"] == 2 and verified["ended"] is None and rung["tried"][:1] == begun[0]["tried"]
    values = {each["candidate"]: each["value"] for each in rung["tried"]}
    assert set(values) == {f"two: {way}" for way in ("linear_probe", "last_stages", "adapters", "fine_tune")}
    assert all(0 <= value <= 1 for value in values.values())
    assert verified["winner"]["value"] == max(values.values())
    ran = json.loads((workdir / "runs" / "two_adapters" / "rung1" / "config.json").read_text())["config"]
    assert ran["strategy"] == {"lora": {"rank": 2}} and ran["optim"]["learning_rate"] == 1e-3
    assert "test" not in ran["data"] and "select" not in ran and ran["train"]["steps"] == 2
    assert "Short runs" in (workdir / "select.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (workdir / "runs").rglob("metrics.jsonl")}
    assert main([*command, "--budget=1h"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (workdir / "runs").rglob("metrics.jsonl")} == before
    assert json.loads((workdir / "select.json").read_text()) == whole


def test_mistakes_exit_with_2(parts, tmp_path, capsys):
    _, config = parts
    for options, message in (
        (["--budget=soon", f"--workdir={tmp_path}"], "--budget=soon is no time"),
        (["--budget=1m"], "--workdir"),
        (["--budget=1m", f"--workdir={tmp_path}", "--config.data.validation=None"], "docs/configs.md"),
        (["--checkpoints=tow"], "Did you mean 'two'"),
        (["--checkpoints=x=no/such/folder"], "no/such/folder"),
        (["--config.data.train=None"], "nothing to score"),
        (["--config.task.name=regression"], "classes"),
    ):
        assert main(["select", f"--config={config}", *options]) == 2, options
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown, shown
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "select.json").write_text(json.dumps({"config": {}, "checkpoints_given": None}))
    assert main(["select", f"--config={config}", f"--workdir={tmp_path / 'other'}"]) == 2
    assert "another selection" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), (None, None)])
def test_a_budget_is_read_in_seconds(text, seconds):
    assert seconds_of(text) == seconds
