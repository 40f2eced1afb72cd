"""Where the workers of a study run: on this machine, as an array of SLURM, or nowhere, to see what would start."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tljax.base.files import write_whole
from tljax.sweeps.trials import start
from tljax.sweeps.worker import POLL, Stop

LOGS = "workers"
"""Below the study: what its workers said."""
SCRIPT = "sweep.sbatch"
ALONE = "--distributed=off"
"""What makes each task of SLURM a worker of its own."""
FAILED = 3
"""The exit code where workers failed, as that of a run."""


class Order(NamedTuple):
    """Workers to start.

    Attributes:
      study: the study's folder.
      command: of one worker.
      workers: how many.
      trials: lines that say which trials there are.
      options: of the launcher: those of sbatch.
      say: prints one line.
      tick: called while the workers run; renews the table.
    """

    study: Path
    command: Sequence[str]
    workers: int
    trials: Sequence[str] = ()
    options: str = ""
    say: Callable[[str], None] = print
    tick: Callable[[], None] = lambda: None


def local(order: Order) -> int:
    """Starts the workers on this machine, each on an accelerator or on a part of the cores, and waits for them."""
    stop = Stop()
    with stop.heard():
        started = [
            start(
                order.command,
                order.study / LOGS / f"{number}.log",
                environment=environment_of(number, order.workers),
                cores=cores_of(number, order.workers),
            )
            for number in range(order.workers)
        ]
        told = 0
        while any(process.poll() is None for process in started):
            signals = stop.asked + stop.twice
            if told < signals:
                told = signals
                for process in started:
                    process.send_signal(stop.signal)
            order.tick()
            time.sleep(POLL)
    codes = [process.returncode for process in started]
    for number, code in enumerate(codes):
        if code and not stop.asked:
            order.say(f"worker {number} ended with {code}; see {order.study / LOGS / f'{number}.log'}")
    if 0 in codes:  # it found nothing that waits or runs
        return 0
    return 128 + stop.signal if stop.asked else max(FAILED, *codes)


def environment_of(number: int, workers: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that give a worker its GPU; {} where there is none, or one worker alone, which takes all.

    Args:
      number: of the worker, from 0.
      workers: how many there are. More than GPUs share them, and their memory.
      environment: of this process.
    """
    gpus = gpus_of(environment)
    if workers == 1 or not gpus:
        return {}
    found = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
    sharing = -(-workers // len(gpus))
    if sharing > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.2f}"
    return found


def gpus_of(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The numbers of the GPUs of NVIDIA that jax may use."""
    if not {"", "cuda", "gpu"} & {*environment.get("JAX_PLATFORMS", "").split(",")}:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [number for number in environment["CUDA_VISIBLE_DEVICES"].split(",") if number]
    return sorted((path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")), key=int)


def cores_of(number: int, workers: int, cores: Sequence[int] | None = None) -> list[int]:
    """The cores of a worker; none, which stands for all, where they are fewer than workers, or GPUs do the work."""
    if cores is None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers == 1 or workers > len(cores) or gpus_of(os.environ):
        return []
    return list(cores[number * len(cores) // workers : (number + 1) * len(cores) // workers])


SLURM = """\
#!/usr/bin/env bash
# The workers of a study, an array of SLURM. Written by `launch.py sweep --launcher=slurm`.
#SBATCH --job-name=tljax-sweep
#SBATCH --array=0-{last}
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={logs}/slurm-%A_%a.log
{options}set -uo pipefail

cd {here} || exit 2

# In the background, so that bash hears the signal and hands it on. Every word stands as it was given.
# shellcheck disable=SC2016
{command} &
worker=$!
trap 'kill -TERM "$worker"' TERM
wait "$worker"
code=$?
while kill -0 "$worker" 2> /dev/null; do
  wait "$worker"
  code=$?
done

# 143: SIGTERM came near the end of the time, and the trial was saved. The same task goes on later.
if [ "$code" -eq 143 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def slurm(order: Order) -> int:
    """Writes a script for an array of workers into the study, and submits it where there is `sbatch`."""
    (order.study / LOGS).mkdir(parents=True, exist_ok=True)
    logs = (order.study / LOGS).resolve()
    text = SLURM.format(
        last=order.workers - 1,
        logs=logs,
        options=f"#SBATCH {order.options}\n" if order.options else "",
        here=shlex.quote(str(Path.cwd())),
        command=shlex.join([*(word for word in order.command if word != ALONE), ALONE]),
    )
    path = write_whole(order.study / SCRIPT, text)
    if shutil.which("sbatch") is None:
        order.say(f"There is no sbatch here. On a machine that has it: sbatch {path}")
        return 0
    return subprocess.run(["sbatch", str(path)], check=False).returncode and FAILED


def dry(order: Order) -> int:
    """Prints the trials, and what would be started for them; starts nothing."""
    for line in order.trials:
        print(line)
    for number in range(order.workers):
        variables = [f"{name}={value}" for name, value in environment_of(number, order.workers).items()]
        cores = cores_of(number, order.workers)
        where = f"  # cores {', '.join(map(str, cores))}" if cores else ""
        print(shlex.join([*variables, *order.command]) + where)
    return 0
