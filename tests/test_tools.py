"""The scripts that start runs on clusters: shellcheck, and what they run, with stand-ins for the clusters' commands."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
ARGUMENTS = ["--config=configs/a b.py", "--config.strategy={'last_k': {'k': 2}}", "--workdir=runs/$x"]
GCLOUD = r"""#!/bin/bash
# Notes its arguments and runs the last of them, --command=…, in a shell at home, as the other machine would.
printf "%s\n" "$@" > "$HOME/gcloud"
command=${!#}
cd "$HOME" && exec bash -c "${command#--command=}"
"""


def test_shellcheck_finds_nothing():
    binary = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert binary, "shellcheck is not installed: pip install -r requirements-dev.txt"
    scripts = sorted(TOOLS.iterdir())
    assert len(scripts) >= 3
    done = subprocess.run([binary, *map(str, scripts)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def place(tmp_path):
    """A home with a fake installation, whose Python writes its arguments down and waits, and with stand-ins in PATH."""
    python = tmp_path / "tljax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > arguments\nexec sleep ${SLEEP:-0}\n')
    stands_in = tmp_path / "bin"
    stands_in.mkdir()
    (stands_in / "gcloud").write_text(GCLOUD)
    (stands_in / "xpk").write_text('#!/bin/bash\nprintf "%s\\0" "$@" > "$HOME/xpk"\n')
    (stands_in / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$HOME/srun"\nexit ${CODE:-0}\n')
    (stands_in / "scontrol").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$HOME/scontrol"\n')
    for file in (python, *stands_in.iterdir()):
        file.chmod(0o755)
    return tmp_path


def run(place: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HOME": str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [str(TOOLS / script), *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=30
    )


def test_a_pod_gets_the_arguments_as_they_were_given_and_can_be_stopped(place):
    named = {"TPU_NAME": "pod", "ZONE": "us-east5-b", "SLEEP": "60"}
    done = run(place, "tpu_pod.sh", "run", *ARGUMENTS, **named)
    assert done.returncode == 0, done.stderr
    called = (place / "gcloud").read_text().splitlines()
    assert called[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert {"--zone=us-east5-b", "--worker=all"} <= set(called)
    written = place / "tljax" / "arguments"
    end = time.monotonic() + 10
    while not written.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert written.read_text().splitlines() == ["launch.py", *ARGUMENTS]
    pid = int((place / "tljax" / "run.pid").read_text())
    assert run(place, "tpu_pod.sh", "stop", **named).returncode == 0
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("SIGTERM did not reach the process")


def test_a_pod_must_be_named(place):
    done = run(place, "tpu_pod.sh", "log")
    assert done.returncode != 0 and "TPU_NAME: the name of the slice" in done.stderr
    done = run(place, "tpu_pod.sh", "strat", TPU_NAME="pod", ZONE="z")
    assert done.returncode == 2 and "no verb strat" in done.stderr


def test_xpk_gets_one_command_that_a_shell_reads_back(place):
    named = dict.fromkeys(("CLUSTER", "ZONE", "PROJECT", "TPU_TYPE", "IMAGE", "STORAGE"), "it")
    assert run(place, "gke_xpk.sh", "study", *ARGUMENTS, **named).returncode == 0
    called = (place / "xpk").read_text().split("\0")[:-1]
    assert called[:3] == ["workload", "create", "--workload=study"]
    command = next(word for word in called if word.startswith("--command=")).removeprefix("--command=")
    shell = f'exec() {{ printf "%s\\n" "$@"; }}; {command}'
    read = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30)
    assert read.stdout.splitlines() == ["python", "launch.py", *ARGUMENTS]


@pytest.mark.parametrize(("code", "again"), [("0", False), ("3", False), ("143", True)])
def test_slurm_runs_the_job_again_where_it_was_stopped(place, code, again):
    done = run(place, "slurm.sbatch", *ARGUMENTS, CODE=code, SLURM_SUBMIT_DIR=str(place), SLURM_JOB_ID="7")
    assert done.returncode == int(code)
    called = (place / "srun").read_text().splitlines()
    assert called == ["--kill-on-bad-exit=1", ".venv/bin/python", "launch.py", *ARGUMENTS]
    assert (place / "scontrol").exists() == again
    if again:
        assert (place / "scontrol").read_text().split() == ["requeue", "7"]
