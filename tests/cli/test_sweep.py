"""`sweep` by the command line, with real runs of a tiny BERT; without jax in its own process; and people's mistakes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax import tasks
from tljax.base.errors import UserError
from tljax.cli.distributed import add_flags
from tljax.cli.main import main
from tljax.cli.sweep import slice_of

ROOT = Path(__file__).parents[2]
SWEEP = """

def sweep():
    probe = {{"strategy": {{"linear_probe": {{}}}}, "train.cache": {cache!r}}}
    return dict(
        joint=[
            {{"name": "probe, slow", **probe, "optim.learning_rate": 1e-3}},
            {{"name": "probe, fast", **probe, "optim.learning_rate": 1e-1}},
            {{"name": "mistake", "task.pool": "maen", **probe, "optim.learning_rate": 1e-1}},
        ],
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    path = save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "train.csv"))
    path.write_text(path.read_text().replace("config.train = dict(", "config.train = dict(cache='off', "))
    path.write_text(path.read_text() + SWEEP.format(cache=str(folder / "cache")))
    return path


def trials(study: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in study.glob("trials/*/trial.json")]
    return {each["names"]["joint"]: each for each in found}


def test_a_study_runs_probes_together_keeps_failures_and_starts_nothing_twice(config, tmp_path, capsys):
    study = tmp_path / "study"
    command = ["sweep", f"--config={config}", f"--study={study}", "--config.train.steps=8", "--config.seed=3"]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "2 complete, 1 failed" in said and "--retry runs them again" in said
    found = trials(study)
    assert {name: each["state"] for name, each in found.items()} == {
        "probe, slow": "complete",
        "probe, fast": "complete",
        "mistake": "failed",
    }
    assert "exit code 2" in found["mistake"]["error"] and "Did you mean 'mean'" in found["mistake"]["error"]
    for name in ("probe, slow", "probe, fast"):
        folder = study / "trials" / found[name]["hash"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["kind"] == "end" and lines[-1]["step"] == 8
        assert found[name]["value"] == lines[-1]["best"]["value"]
        best = max(r["metrics"]["accuracy"] for r in lines if r["kind"] == "evaluate" and r["split"] == "validation")
        assert best == found[name]["value"]
        ran = json.loads((folder / "config.json").read_text())["config"]
        assert (ran["seed"], ran["optim"]["learning_rate"]) == (3, found[name]["values"]["optim.learning_rate"])
        assert (folder / "report.html").exists()
    assert len(list((study / "together").iterdir())) == 1, "the probes were one program"
    about = json.loads((study / "study.json").read_text())
    assert (about["metric"], about["mode"], about["trials"]) == ("accuracy", "max", 3)
    before = {path: path.stat().st_mtime_ns for path in study.glob("trials/*/*")}
    assert main(command) == 3, "some failed, as before"
    assert before == {path: path.stat().st_mtime_ns for path in study.glob("trials/*/*")}
    assert main([*command, "--config.optim.weight_decay=0.5"]) == 2
    assert "base.optim.weight_decay: 0.01 → 0.5" in capsys.readouterr().err


def test_sweep_loads_no_jax_and_help_and_dry_runs_no_database(config, tmp_path):
    code = f"""
import sys
from tljax.cli.main import main
try:
    main(["sweep", "--help"])
except SystemExit as left:
    assert left.code == 0
loaded = {{"jax", "flax", "optuna", "sqlalchemy", "rich", "numpy"}} & {{*sys.modules}}
assert not loaded, loaded
assert main(["sweep", "--config={config}", "--study={tmp_path}/study", "--launcher=dry", "--workers=2"]) == 0
from tljax.sweeps import launchers, live, slices, study, worker
import optuna, sqlalchemy
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "trial 1: joint=probe, fast" in lines and sum("launch.py sweep" in line for line in lines[-2:]) == 2
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config={config}"], "Give --study=runs/NAME"),
        (["--study={study}"], "Give --config=configs/NAME.py, a config that defines sweep"),
        (["--config=configs/quickstart.py", "--study={study}"], r"defines no sweep\(\)"),
        (["--config={config}", "--study={study}", "--workers=0"], "--workers=0: it must be a whole number from 1"),
        (
            ["--config={config}", "--study={study}", "--launcher=slrm"],
            "There is no launcher called 'slrm'. Did you mean 's",
        ),
        (
            ["--config={config}", "--study={study}", "--config.task.name=regression"],
            "name `metric` and `mode` in sweep",
        ),
        (["--config={config}", "--study={study}", "--config.data.validation=None"], "no `validation`"),
        (
            [
                "--config={config}",
                "--study={study}",
                "--workers=2",
                "--coordinator=h:1",
                "--processes=2",
                "--process=1",
            ],
            "The processes of a slice are one worker",
        ),
    ],
)
def test_mistakes_are_said(config, tmp_path, capsys, options, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [option.format(config=config, study=tmp_path / "study") for option in options]
    assert main(["sweep", *given]) == 2
    assert message.replace("\\", "") in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "study").exists()


def test_which_processes_make_one_worker():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    alone = parser.parse_args([])
    assert slice_of(alone, {}) is None
    flags = ["--coordinator=host:7", "--processes=2", "--process=1"]
    found = slice_of(parser.parse_args(flags), {})
    assert (found.name, found.process, list(found.flags)) == ("host:7", 1, flags)
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "99"}
    assert slice_of(alone, slurm) == ("slurm 99", 3, ())
    assert slice_of(parser.parse_args(["--distributed=off"]), slurm) is None
    with pytest.raises(UserError, match="several of Open MPI"):
        slice_of(alone, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"})


def test_the_table_of_main_metrics_says_what_the_tasks_say():
    sources = {
        name: Path(ROOT, *where.partition(":")[0].split(".")).with_suffix(".py") for name, where in tasks.TABLE.items()
    }
    for name, (metric, mode) in tasks.MAIN.items():
        assert f'("{metric}", "{mode}")' in sources[name].read_text(), name
    assert set(tasks.TABLE) - set(tasks.MAIN) == {"regression", "seq2seq", "several", "similarity"}
