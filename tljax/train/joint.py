"""Several processes that train together: stopping after the same step, and a run folder that all of them see."""

import ctypes
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


class HeldSigterm:
    """The handler of SIGTERM of one of several processes outside the training loop: it ends the process.

    jax catches SIGTERM from the moment on at which the processes join, and waits for steps that an evaluation never
    takes; worse, what has begun to wait so cannot end. So its handler is put aside, and in its place for the time of
    the loop only. Python's own functions cannot put back a handler that is not Python's.
    """

    def __init__(self):
        self._theirs = ctypes.create_string_buffer(1024)  # a `struct sigaction`, whose size differs by platform
        self._libc = ctypes.CDLL(None)
        self._libc.sigaction(signal.SIGTERM, None, self._theirs)
        signal.signal(signal.SIGTERM, self)

    def __call__(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def release(self) -> None:
        """Puts jax's handler in place."""
        self._libc.sigaction(signal.SIGTERM, self._theirs, None)


def stop_together() -> tuple[Hook, Callable[[], int | None], Callable[[], None]]:
    """Ends the run of all processes after the same step when one of them gets SIGTERM or SIGINT.

    jax catches SIGTERM, and agrees on a step that none of the processes has passed. A SIGINT becomes a SIGTERM; a
    second one ends this process at once.

    Returns:
      (hook, signal number that stopped the run or None, function that puts the former handlers back).
    """
    interrupted: list[int] = []
    reached: list[int] = []
    former, held = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, former)
        os.kill(os.getpid(), signal.SIGTERM)

    def restore() -> None:
        signal.signal(signal.SIGINT, former)
        signal.signal(signal.SIGTERM, held)

    def after(step: int, state: State, metrics: dict) -> str | None:
        if not multihost_utils.reached_preemption_sync_point(step):
            return None
        reached.append(interrupted[0] if interrupted else signal.SIGTERM)
        return f"stopped by {signal.Signals(reached[0]).name}"

    signal.signal(signal.SIGINT, handle)
    if isinstance(held, HeldSigterm):
        held.release()
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
