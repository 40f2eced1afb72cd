"""Several processes that train together: stopping after the same step, and a run folder that all of them see."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils

from tljax.base.errors import UserError
from tljax.base.processes import gathered, several
from tljax.train.loop import Hook
from tljax.train.state import State

PATIENCE = 30.0
"""Seconds in which a file must show on all machines; NFS looks at a folder again after 30 to 60."""


def stop_together() -> tuple[Hook, Callable[[], int | None], Callable[[], None]]:
    """Ends the run of all processes after the same step when one of them gets SIGTERM or SIGINT.

    jax catches SIGTERM from the moment on at which the processes joined, and agrees on a step that none of them has
    passed. So its handler stays in place, and a SIGINT becomes a SIGTERM; a second SIGINT ends this process at once.

    Returns:
      (hook, signal number that stopped the run or None, function that puts the former handler back).
    """
    interrupted: list[int] = []
    reached: list[int] = []
    former = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        interrupted.append(number)
        restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def restore() -> None:
        signal.signal(signal.SIGINT, former)

    def after(step: int, state: State, metrics: dict) -> str | None:
        if not multihost_utils.reached_preemption_sync_point(step):
            return None
        reached.append(interrupted[0] if interrupted else signal.SIGTERM)
        return f"stopped by {signal.Signals(reached[0]).name}"

    signal.signal(signal.SIGINT, handle)
    return Hook(after), lambda: reached[0] if reached else None, restore


def seen_by_all(workdir: Path) -> None:
    """Refuses a run folder that is not the same one in every process, which would lose parts of the checkpoints.

    Raises:
      UserError: some process does not see the config.json that process 0 wrote.
    """
    if not several():
        return
    path = workdir / "config.json"
    theirs = gathered(path.read_text(encoding="utf8") if path.exists() else None)
    end = time.monotonic() + PATIENCE
    while not (same := path.exists() and path.read_text(encoding="utf8") == theirs[0]) and time.monotonic() < end:
        time.sleep(1)
    blind = [process for process, sees in enumerate(gathered(same)) if not sees]
    if blind:
        raise UserError(
            f"The workdir {workdir} is not the same folder in all processes: {', '.join(map(str, blind))} of "
            f"{len(theirs)} do not see what process 0 wrote. Give a folder on a file system that all machines share."
        )
