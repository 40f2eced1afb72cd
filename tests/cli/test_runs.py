"""Whole runs by the command line, on a tiny BERT: every verb, continued runs, and the mistakes that people make."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    checkpoint = save_tiny_bert(folder / "bert")
    data = save_csv(folder / "train.csv")
    test = save_csv(folder / "test.csv", 20, seed=1)
    return folder, save_config(folder / "config.py", checkpoint, data, test=test)


@pytest.fixture(scope="module")
def trained(parts):
    folder, config = parts
    workdir = folder / "run"
    assert main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    return config, workdir


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir: Path) -> list[dict]:
    """The records without clock times."""
    timed = ("seconds", "steps_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records(workdir)]


def leaf_digests(workdir: Path, step: int) -> dict[str, dict]:
    """Shape, dtype and digest of every leaf of a checkpoint: parameters, optimizer, statistics."""
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(record.read_text())["leaves"]


def test_a_run_learns_and_leaves_its_records(trained):
    _, workdir = trained
    found = records(workdir)
    losses = [r["loss"] for r in found if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    evaluations = [(r["step"], r["split"]) for r in found if r["kind"] == "evaluate"]
    assert evaluations[:3] == [(4, "validation"), (8, "validation"), (12, "validation")]
    assert evaluations[-1][1] == "test"
    assert found[-1]["kind"] == "end"
    assert (workdir / "report.html").stat().st_size > 10_000
    config = json.loads((workdir / "config.json").read_text())
    assert config["digests"]["pretrained"] and config["digests"]["live"]
    assert list((workdir / "tensorboard").iterdir())


def test_a_run_leaves_a_line_on_how_it_ended(trained):
    _, workdir = trained
    line = json.loads((workdir / "records.jsonl").read_text().splitlines()[0])
    assert (line["state"], line["step"], line["steps"], line["error"]) == ("done", 12, 12, None)
    assert line["config"] == json.loads((workdir / "config.json").read_text())["config"]
    tested = next(r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test")
    assert line["metrics"]["test"] == tested["metrics"] and set(line["metrics"]) == {"test", "validation"}
    # The products of 128 tokens (8 texts of 16) with each kernel of the two blocks, there and twice back; in so narrow
    # a model what is done element by element is several times as much.
    products = 6 * 128 * 2 * (4 * 16 * 16 + 2 * 16 * 24)
    assert products < line["step_flops"] < 10 * products
    assert line["live_parameters"] == json.loads((workdir / "inspect.json").read_text())["total"]["live_at_end"]
    assert line["best_step"] in (4, 8, 12) and line["versions"]["jax"] and line["digests"]["live"]


def test_the_same_command_again_changes_nothing(trained):
    config, workdir = trained
    before = numbers(workdir)
    assert main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    assert numbers(workdir) == before


def test_a_run_in_two_parts_has_the_bits_of_one(parts):
    folder, config = parts
    workdir = folder / "two_parts"
    same = ["--config.optim.schedule=constant", "--config.optim.warmup=2"]  # neither depends on the number of steps
    short, long = ["--config.train.steps=8", *same], ["--config.train.steps=12", *same]
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *short]) == 0
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *long]) == 0
    once = folder / "once"
    assert main(["train", f"--config={config}", f"--workdir={once}", *long]) == 0
    kinds = ("train", "evaluate")
    steps = [r for r in numbers(workdir) if r["kind"] in kinds]
    assert steps == [r for r in numbers(once) if r["kind"] in kinds]


def test_another_config_is_refused_and_nothing_is_touched(trained, capsys):
    config, workdir = trained
    before = (workdir / "config.json").read_text()
    code = main(["train", f"--config={config}", f"--workdir={workdir}", "--config.optim.learning_rate=0.1"])
    assert code == 2
    assert "optim.learning_rate: 0.003 → 0.1" in capsys.readouterr().err
    assert (workdir / "config.json").read_text() == before


def test_evaluate_repeats_the_numbers_of_the_run(trained, capsys):
    _, workdir = trained
    in_run = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"][-1]
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    again = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"][-1]
    assert again["metrics"] == in_run["metrics"]


def test_kept_features_are_shown_as_a_map(trained, capsys):
    _, workdir = trained
    assert main(["evaluate", f"--workdir={workdir}", "--features=12"]) == 0
    with np.load(workdir / "features" / "test.npz") as kept:
        assert kept["features"].shape == (12, 16) and kept["labels"].shape == (12,)
        assert sorted(kept["classes"].tolist()) == ["glad", "sad"]
    assert main(["report", f"--workdir={workdir}"]) == 0
    assert "Features of test" in (workdir / "report.html").read_text()
    assert main(["report", str(workdir), f"--output={workdir / 'page'}"]) == 0
    assert "fine_tune is best by validation" in capsys.readouterr().out
    assert main(["evaluate", f"--workdir={workdir}", "--features=1"]) == 2


def test_predict_reads_text_files_and_folders(trained, tmp_path, capsys):
    _, workdir = trained
    (tmp_path / "a.txt").write_text("red warm\n\ngreen cold\n")
    (tmp_path / "b.jsonl").write_text('{"text": "red", "id": "seven"}\n')
    code = main(["predict", f"--workdir={workdir}", "--text=green green calm", f"--input={tmp_path}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    kept = (workdir / "predictions" / "latest.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines
    assert [line["text"] for line in lines] == ["green green calm", "red warm", "green cold", "red"]
    assert lines[-1]["id"] == "seven"
    for line in lines:
        assert set(line["probabilities"]) == {"sad", "glad"}
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_inspect_shows_what_is_live(parts, capsys):
    _, config = parts
    assert main(["inspect", f"--config={config}", "--config.strategy={'linear_probe': {}}"]) == 0
    shown = capsys.readouterr().err
    assert "frozen" in shown and "block1" in shown and "GFLOP" in shown
    assert "pooler" not in shown  # a mean-pooled task does not run it


def test_linear_probe_trains_the_head_alone_and_keeps_the_backbone(parts):
    folder, config = parts
    workdir = folder / "probe_by_steps"
    code = main(["train", f"--config={config}", f"--workdir={workdir}", "--config.strategy={'linear_probe': {}}"])
    assert code == 0
    table = json.loads((workdir / "inspect.json").read_text())
    assert {row["stage"]: row["gradient_bytes"] > 0 for row in table["stages"]} == {
        "embed": False,
        "block0": False,
        "block1": False,
        "head": True,
    }
    assert table["total"]["optimizer_bytes"] == 2 * table["total"]["gradient_bytes"]


def test_probe_fits_saves_and_predicts(parts, capsys):
    folder, config = parts
    workdir = folder / "probe"
    assert main(["probe", f"--config={config}", f"--workdir={workdir}", "--config.task.normalize=True"]) == 0
    measured = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"][-1]
    (line,) = map(json.loads, (workdir / "records.jsonl").read_text().splitlines())
    assert (line["state"], line["metrics"]["test"]) == ("done", measured["metrics"])
    assert 0 < line["seconds"] < 300 and line["processor_seconds"] > 0 and line["live_parameters"] == 34
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    again = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"][-1]
    assert again["metrics"]["accuracy"] == measured["metrics"]["accuracy"]


def test_export_loads_strictly_in_sentence_transformers(trained, capsys):
    from huggingface_hub import ModelCard
    from sentence_transformers import SentenceTransformer

    _, workdir = trained
    assert main(["export", f"--workdir={workdir}"]) == 0
    card = ModelCard.load(workdir / "export" / "README.md")
    assert card.data.library_name == "sentence-transformers" and card.data.license == "unknown"
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    logits = SentenceTransformer(str(workdir / "export"), device="cpu").encode(["red warm", "green cold"])
    capsys.readouterr()
    assert main(["predict", f"--workdir={workdir}", "--text=red warm", "--text=green cold"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = np.array([[line["probabilities"][name] for name in ("glad", "sad")] for line in lines])
    theirs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_sigterm_saves_and_the_same_command_ends_with_the_same_bits(parts):
    folder, config = parts
    long = ["--config.train.steps=400", "--config.train.eval_every=100", "--config.train.save_every=100"]
    workdir, once = folder / "stopped", folder / "undisturbed"
    command = [sys.executable, "launch.py", "train", f"--config={config}", *long]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists() and len(records(workdir)) > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr.decode()
    assert b"saved at step" in stderr
    for target in (workdir, once):
        subprocess.run([*command, f"--workdir={target}"], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert numbers(workdir) == numbers(once)
    assert leaf_digests(workdir, 400) == leaf_digests(once, 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.optim.lerning_rate=1", "Did you mean 'learning_rate'"),
        ("--config.task.name=clasification", "Did you mean 'classification'"),
        ("--config.strategy={'last_k': {'k': 9}}", "k"),
        ("--config.strategy={'freeze': {'rules': ['backbone/blok0/.*']}}", "matches no path"),
        ("--config.model.source=no/such/folder", "no/such/folder"),
        ("--config.data.train.columns={'text': 'reviw', 'label': 'mood'}", "Did you mean 'review'"),
        ("--config.trian={}", "Did you mean 'train'"),
        ("--config.train.batch_size=0", "at least 1"),
        ("--config.mesh={'data': 3}", "batch"),
        ("--config.method.mixup=0.2", "mixup"),
    ],
)
def test_mistakes_exit_with_2_and_say_how_to_mend_them(parts, tmp_path, capsys, change, message):
    _, config = parts
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'w'}", change]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["evaluate", f"--workdir={tmp_path / 'nope'}"]) == 2
    assert f"--workdir={tmp_path / 'nope'} is no folder of a run" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_with_the_checkpoints_intact(parts, tmp_path, capsys):
    _, config = parts
    workdir = tmp_path / "diverging"
    changes = ["--config.optim.name=sgd", "--config.optim.learning_rate=1e30", "--config.optim.weight_decay=0.0"]
    code = main(["train", f"--config={config}", f"--workdir={workdir}", *changes, "--config.optim.warmup=0.0"])
    assert code == 3
    assert "at step" in capsys.readouterr().err
    (line,) = (workdir / "records.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert line["state"] == "failed" and "at step" in line["error"] and line["metrics"] == {}


def test_nothing_to_evaluate_is_said(parts, capsys):
    _, config = parts
    assert main(["evaluate", f"--config={config}"]) == 2
    assert "the head is new" in capsys.readouterr().err
