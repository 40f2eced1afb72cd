"""Stopping a run after the step at which a signal found it, in one process or in several."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from jax.experimental import multihost_utils

from tljax.base.processes import several
from tljax.train.loop import Hook
from tljax.train.state import State


class Interrupted(BaseException):
    """A signal came where work may be left for later."""


class Stop(NamedTuple):
    """What ends a run on SIGINT or SIGTERM.

    Attributes:
      hook: ends the run after the present step.
      received: () → the number of the signal that came, or None.
      undo: puts the former handlers back.
      interruptible: context in which a signal raises `Interrupted` at once.
    """

    hook: Hook
    received: Callable[[], int | None]
    undo: Callable[[], None]
    interruptible: Callable[[], AbstractContextManager[None]]

    @property
    def reason(self) -> str | None:
        """In words; None where no signal came."""
        number = self.received()
        return None if number is None else f"stopped by {signal.Signals(number).name}"


def stop_on_signals() -> Stop:
    """Ends the run after the present step on SIGINT or SIGTERM; a second signal ends the process at once.

    Of several processes all end after the same step.
    """
    if several():
        return _stop_together()
    received: list[int] = []
    inside: list[bool] = []
    former = {}

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        undo()  # the next signal does what it always does
        if inside:
            raise Interrupted

    def undo() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible() -> Iterator[None]:
        if received:
            raise Interrupted
        inside.append(True)
        try:
            yield
        finally:
            inside.clear()

    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, handle)
    stop = Stop(Hook(), lambda: received[0] if received else None, undo, interruptible)
    return stop._replace(hook=Hook(lambda step, state, metrics: stop.reason))


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


def _stop_together() -> Stop:
    """Ends the run of all processes after the same step when one of them gets SIGTERM or SIGINT.

    jax catches SIGTERM, and agrees on a step that none of the processes has passed. A SIGINT becomes a SIGTERM; a
    second one ends this process at once. Nothing is broken off: one process alone may not leave what all do together.
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
    return Stop(Hook(after), lambda: reached[0] if reached else None, restore, nullcontext)
