"""Where workers run: cores and GPUs of each, the script for SLURM with stand-ins for its commands, the dry run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tljax.sweeps.launchers import SCRIPT, Order, cores_of, dry, environment_of, gpus_of, local, slurm


def test_each_worker_has_a_part_of_the_cores(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    parts = [cores_of(number, 3, cores=[0, 2, 4, 5, 6, 7, 8]) for number in range(3)]
    assert [core for part in parts for core in part] == [0, 2, 4, 5, 6, 7, 8]
    assert {len(part) for part in parts} == {2, 3}
    assert cores_of(0, 1, cores=[0, 1]) == [] and cores_of(0, 3, cores=[0, 1]) == []


def test_each_worker_has_a_gpu_and_shares_it_where_there_are_too_few(tmp_path):
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    assert gpus_of({}, tmp_path) == ["0", "2", "10"]
    assert gpus_of({"CUDA_VISIBLE_DEVICES": "4,5"}, tmp_path) == ["4", "5"]
    assert gpus_of({"JAX_PLATFORMS": "cpu"}, tmp_path) == []
    two = {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert [environment_of(i, 2, two) for i in range(2)] == [{"CUDA_VISIBLE_DEVICES": g} for g in "45"]
    assert environment_of(2, 4, two) == {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
    assert environment_of(0, 1, two) == {}


def order(tmp_path, code: str, **more) -> Order:
    return Order(tmp_path / "study", [sys.executable, "-c", code], 2, say=lambda line: None, **more)


def test_this_machine_runs_all_workers_and_needs_one_that_found_nothing_left(tmp_path):
    marks = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()"
    assert local(order(tmp_path, marks)) == 0
    assert sum(path.name.isdecimal() for path in tmp_path.iterdir()) == 2
    assert local(order(tmp_path, "raise SystemExit(2)")) == 3
    one = f"import os; os.mkdir({str(tmp_path / 'first')!r})"
    assert local(order(tmp_path, one)) == 0, "the second fails, and the first found nothing left to do"
    assert "FileExistsError" in "".join(path.read_text() for path in (tmp_path / "study" / "workers").iterdir())


def test_a_signal_is_handed_on(tmp_path):
    code = "import signal, time\nsignal.signal(2, lambda *_: exit(130))\nprint('up', flush=True)\ntime.sleep(60)"
    logs = tmp_path / "study" / "workers"

    def tick():
        if [path.read_text() for path in logs.iterdir()] == ["up\n"] * 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert local(order(tmp_path, code, tick=tick)) == 130


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for sbatch, which runs the first task of the array, and scontrol."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        f'#!/bin/bash\nSLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=0 exec bash "$1" > {tmp_path}/out 2>&1\n'
    )
    (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/scontrol\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_slurm_gets_an_array_with_the_command_as_it_is(cluster):
    given = order(cluster, "import sys; print(sys.argv[1:])", options="--gpus=1 --time=04:00:00")
    assert slurm(given._replace(command=[*given.command, "a b", "$x"])) == 0
    assert (cluster / "out").read_text() == "['a b', '$x', '--distributed=off']\n"
    script = cluster / "study" / SCRIPT
    text = script.read_text()
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --gpus=1 --time=04:00:00\n" in text
    binary = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run([binary, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_a_task_of_slurm_hands_sigterm_on_and_is_queued_again(cluster, monkeypatch):
    code = "import signal, time\nsignal.signal(15, lambda *_: exit(143))\nprint('up', flush=True)\ntime.sleep(60)"
    (cluster / "worker.py").write_text(code)
    given = order(cluster, code)._replace(command=[sys.executable, str(cluster / "worker.py")])
    with monkeypatch.context() as without:
        without.setenv("PATH", "/usr/bin:/bin")  # written, and not submitted
        slurm(given)
    with subprocess.Popen(["sbatch", str(cluster / "study" / SCRIPT)]) as task:
        while not (cluster / "out").exists() or "up" not in (cluster / "out").read_text():
            time.sleep(0.05)
        task.send_signal(signal.SIGTERM)
        assert task.wait(timeout=30) == 143
    assert (cluster / "scontrol").read_text() == "requeue 7_0\n"


def test_without_sbatch_the_script_is_written_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    assert slurm(order(tmp_path, "1")._replace(say=said.append)) == 0
    assert said == [f"There is no sbatch here. On a machine that has it: sbatch {tmp_path / 'study' / SCRIPT}"]


def test_a_dry_run_prints_and_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    code = f"open({str(tmp_path / 'mark')!r}, 'w')"
    assert dry(order(tmp_path, code, trials=["trial 0: seed=0"])) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "trial 0: seed=0" and [line.split()[0] for line in out[1:]] == [
        "CUDA_VISIBLE_DEVICES=0",
        "CUDA_VISIBLE_DEVICES=1",
    ]
    assert list(tmp_path.iterdir()) == []
