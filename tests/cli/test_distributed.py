"""Who belongs to several processes: flags, environment, launchers; and what is said where something does not fit."""

import argparse
import time

import pytest

from tests.processes import finish, free_port, start
from tljax.base.errors import RunError, UserError
from tljax.cli.distributed import Place, add_flags, join, launcher_of, place_of
from tljax.cli.main import main

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(given)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((), {}, None),
        (("--coordinator=host:1", "--processes=4", "--process=2"), {}, Place("host:1", 4, 2)),
        (("--coordinator=[::1]:99", "--processes=1", "--process=0"), {}, Place("[::1]:99", 1, 0)),
        (
            ("--process=1",),
            {"TLJAX_COORDINATOR": "10.0.0.2:80", "TLJAX_PROCESSES": "2", "TLJAX_PROCESS": "0"},
            Place("10.0.0.2:80", 2, 1),
        ),
        (("--coordinator=a:1",), SLURM, Place("a:1", 4, 3)),
        (("--coordinator=a:1", "--process=0"), MPI, Place("a:1", 2, 0)),
    ],
)
def test_a_place_is_read_from_flags_environment_and_launcher(given, environment, expected):
    assert place_of(flags(*given), environment) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--processes=2",), r"--coordinator \(or TLJAX_COORDINATOR\) and --process \(or TLJAX_PROCESS\) is not given"),
        (("--coordinator=a", "--processes=2", "--process=0"), "HOST:PORT"),
        (("--coordinator=a:70000", "--processes=2", "--process=0"), "from 1 to 65535"),
        (("--coordinator=http://a:80", "--processes=2", "--process=0"), "is no address"),
        (("--coordinator=a:1", "--processes=2", "--process=2"), "the last has the number 1"),
        (("--coordinator=a:1", "--processes=0", "--process=0"), "--processes=0: it must be a whole number from 1"),
        (("--coordinator=a:1", "--processes=2", "--process=-1"), "--process=-1: it must be a whole number from 0"),
        (("--distributed=of",), "Did you mean 'off'"),
        (("--join_timeout=soon",), "--join_timeout=soon: it must be a whole number"),
    ],
)
def test_what_does_not_fit_is_said_before_jax_is_used(given, message):
    with pytest.raises(UserError, match=message):
        join("train", flags(*given), {})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, "SLURM"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script, which srun did not start
        (MPI, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_a_launcher_is_known_by_its_marks(environment, expected):
    assert launcher_of(environment) == expected


def test_off_is_off_and_some_verbs_are_for_one_process():
    join("train", flags("--distributed=off"), SLURM)
    join("report", flags(), SLURM)
    with pytest.raises(UserError, match=r"export is done by one process.*train, evaluate, predict.*--distributed=off"):
        join("export", flags(), SLURM)


def test_a_single_process_needs_no_others(tmp_path, capsys):
    alone = ["--coordinator=127.0.0.1:1", "--processes=1", "--process=0"]
    assert main(["evaluate", f"--config={tmp_path / 'none.py'}", *alone]) == 2
    assert "There is no config file" in capsys.readouterr().err


def test_processes_that_do_not_come_are_said_in_time():
    began = time.monotonic()
    port = free_port()
    with pytest.raises(RunError, match=r"did not come together at 127.0.0.1:\d+ within 1 s"):
        join("train", flags(f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process=1", "--join_timeout=1"), {})
    assert time.monotonic() - began < 10


@pytest.mark.long
def test_process_0_does_not_wait_for_ever_either(tmp_path):
    """Only process 0 of two is there: it says so and ends with 3."""
    config = tmp_path / "config.py"
    config.write_text("def get_config():\n    return {}\n")
    command = ["train", f"--config={config}", f"--workdir={tmp_path}", "--join_timeout=5"]
    ((code, _, err),) = finish(start(command, processes=2, absent=[1]), timeout=60)
    assert code == 3 and "did not come together" in err and "--join_timeout" in err, err
