"""Starting one command in several real processes on this machine, as a cluster would."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Of one process with so many simulated devices, otherwise as that of the tests.

    With as many threads as several processes are given: 4 devices on 2 cores came to a halt in a collective operation.
    """
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    flags = [f"--xla_force_host_platform_device_count={devices}", *kept]
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags), "PJRT_NPROC": "16"}


def start(
    arguments: Sequence[str],
    *,
    processes: int,
    devices: int = 1,
    more: Sequence[Sequence[str]] | None = None,
    variables: Sequence[Mapping[str, str]] | None = None,
    absent: Sequence[int] = (),
) -> list[subprocess.Popen]:
    """`launch.py` with the arguments, once for each process.

    Args:
      arguments: of all.
      processes: how many there are.
      devices: of each.
      more: arguments of each.
      variables: of the environment of each.
      absent: those that are not started.
    """
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    command = [sys.executable, "launch.py", *arguments, coordinator, f"--processes={processes}"]
    return [
        subprocess.Popen(
            [*command, f"--process={number}", *(more[number] if more else ())],
            cwd=ROOT,
            env={**environment(devices), **(variables[number] if variables else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
        if number not in absent
    ]


def finish(started: Sequence[subprocess.Popen], *, timeout: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, standard output, standard error) of each; kills what is not done in time, with −9 as its code."""
    end = time.monotonic() + timeout
    found = []
    for process in started:
        try:
            out, err = process.communicate(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        found.append((process.returncode, out, err))
    return found


def run(arguments: Sequence[str], *, processes: int, devices: int = 1) -> list[tuple[int, str, str]]:
    """As `start` and `finish`; all must end with 0."""
    found = finish(start(arguments, processes=processes, devices=devices))
    assert [code for code, _, _ in found] == [0] * processes, found
    return found


def run_alone(arguments: Sequence[str], *, devices: int) -> subprocess.CompletedProcess:
    """`launch.py` in one process with so many devices, which must end with 0."""
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
