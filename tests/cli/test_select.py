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
        scores=("logme", "knn"),
        finalists=1,
        eta=2,
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


def test_a_budget_verifies_and_the_same_command_runs_nothing_again(parts, tmp_path, capsys):
    _, config = parts
    command = ["select", f"--config={config}", f"--workdir={tmp_path / 'w'}", "--budget=1h", "--checkpoints=two"]
    command += ["--config.train.steps=4", "--config.train.save_every=4"]
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "the runs find two: " in shown
    first = json.loads((tmp_path / "w" / "select.json").read_text())
    verified = first["verification"]
    assert [rung["steps"] for rung in verified["rungs"]] == [2, 4] and verified["ended"] is None
    assert [len(rung["tried"]) for rung in verified["rungs"]] == [4, 2]
    values = {each["candidate"]: each["value"] for each in verified["rungs"][0]["tried"]}
    assert set(values) == {f"two: {way}" for way in ("linear_probe", "last_stages", "adapters", "fine_tune")}
    assert all(0 <= value <= 1 for value in values.values())
    lora = tmp_path / "w" / "runs" / "two_adapters" / "rung1" / "config.json"
    ran = json.loads(lora.read_text())["config"]
    assert ran["strategy"] == {"lora": {"rank": 2}} and ran["optim"]["learning_rate"] == 1e-3
    assert "test" not in ran["data"] and "select" not in ran
    assert "Short runs" in (tmp_path / "w" / "select.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "runs").rglob("metrics.jsonl")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "runs").rglob("metrics.jsonl")} == before
    assert json.loads((tmp_path / "w" / "select.json").read_text()) == first


def test_a_budget_that_is_over_says_what_did_not_run(parts, tmp_path, capsys):
    _, config = parts
    command = ["select", f"--config={config}", f"--workdir={tmp_path / 'w'}", "--checkpoints=one", "--budget=0.001s"]
    assert main(command) == 0
    assert "4 of the rung did not run" in capsys.readouterr().err


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
