"""What befalls a process, and where: a table of functions of the program, at a call of which it happens."""

import functools
import importlib
import inspect
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A function that a run calls.

    Attributes:
      target: `module:attribute.attribute`.
      result: the calls that count are those of the function that it returns.
      after: it happens when the call is over, and not when it begins.
    """

    target: str
    result: bool = False
    after: bool = False


ORBAX = "orbax.checkpoint._src.path.atomicity:AtomicRenameTemporaryPath.finalize"
POINTS = {
    "writing config.json": Point("os:fsync"),
    "renaming config.json": Point("pathlib:Path.replace"),
    "tracing": Point("tljax.assembly.phases:make_step", result=True),
    "keeping a compiled program": Point("jax._src.compilation_cache:put_executable_and_time"),
    "a step": Point("tljax.assembly.training:Training.phase_of", after=True),
    "reading a step's loss": Point("tljax.train.hooks:finite"),
    "writing a record": Point("tljax.train.records:Records.write"),
    "half a record": Point("tljax.train.records:json"),
    "an evaluation": Point("tljax.assembly.training:predictor", result=True),
    "a new best": Point("tljax.train.hooks:Best.update", after=True),
    "digesting": Point("tljax.checkpoints.run:described"),
    "saving": Point("tljax.checkpoints.run:RunCheckpoints._write", after=True),
    "before a commit": Point(ORBAX),
    "after a commit": Point(ORBAX, after=True),
    "removing old steps": Point("tljax.checkpoints.run:shutil.rmtree"),
    "before a restore": Point("tljax.checkpoints.run:RunCheckpoints._read"),
    "after a restore": Point("tljax.checkpoints.run:RunCheckpoints._read", after=True),
    "cutting the records": Point("tljax.train.records:os.truncate"),
    "writing a cache": Point("tljax.features.store:Field.shape_at"),
    "before a cache's commit": Point("tljax.features.store:Store.__init__"),
    "the last evaluation": Point("tljax.train.job:_conclude"),
    "after the last evaluation": Point("tljax.train.records:Records.evaluation", after=True),
    "the report": Point("tljax.reports.run:page"),
}


EXITS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, "full disk": 3, "vanished folder": 3}
"""What may befall a process → its exit code."""


class Fault(NamedTuple):
    """Something befalls a process at a point.

    Attributes:
      point: a name of `POINTS`, or "" for `delay` seconds after the start.
      call: which call of it, from 1.
      delay: seconds between the call and the event, in which the program goes on.
      what: one of `EXITS`.
    """

    point: str
    call: int = 1
    delay: float = 0.0
    what: str = "SIGKILL"

    def __str__(self) -> str:
        later = f" + {1000 * self.delay:.0f} ms" if self.delay else ""
        place = f"{self.point}, call {self.call}{later}" if self.point else f"any moment ({self.delay:.2f} s)"
        return f"{self.what}: {place}"


def arm(fault: Fault, workdir: Path) -> None:
    """Makes what `fault` says befall this process, which runs in `workdir`."""
    if not fault.point:
        _later(lambda: _strike(fault.what, workdir), fault.delay)
        return

    def strike() -> None:
        _later(lambda: _strike(fault.what, workdir), fault.delay)

    point, count = POINTS[fault.point], iter(range(1, 1_000_000))

    def reached() -> bool:
        return next(count) == fault.call

    owner, name = _owner(point.target)
    original = getattr(owner, name)
    if fault.point == "half a record":
        setattr(owner, name, SimpleNamespace(dumps=_half(original.dumps, reached, strike)))
    elif point.result:
        setattr(owner, name, lambda *a, **k: _watched(original(*a, **k), reached, point.after, strike))
    else:
        setattr(owner, name, _watched(original, reached, point.after, strike))


def _later(event: Callable[[], None], delay: float) -> None:
    if not delay:
        event()
        return

    def wait() -> None:
        time.sleep(delay)
        event()

    threading.Thread(target=wait, daemon=True).start()


def _strike(what: str, workdir: Path) -> None:
    if what == "full disk":  # no file may grow beyond the size that the records have; what is printed has another place
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        size = (workdir / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    elif what == "vanished folder":
        workdir.rename(away(workdir))
    else:
        os.kill(os.getpid(), signal.Signals[what])


def away(workdir: Path) -> Path:
    """Where a folder goes that vanishes."""
    return workdir.with_name(f"{workdir.name}-away")


def _watched(function: Callable, reached: Callable[[], bool], after: bool, strike: Callable[[], None]) -> Callable:
    """`function`, at the right call of which it strikes."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waited(*args: Any, **kwargs: Any) -> Any:
            now = reached()
            if now and not after:
                strike()
            found = await function(*args, **kwargs)
            if now and after:
                strike()
            return found

        return waited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        now = reached()
        if now and not after:
            strike()
        found = function(*args, **kwargs)
        if now and after:
            strike()
        return found

    return called


def _half(dumps: Callable, reached: Callable[[], bool], strike: Callable[[], None]) -> Callable:
    """json.dumps, whose text ends in the middle at the right call; it strikes at the call after it."""
    broken: list[bool] = []

    def called(*args: Any, **kwargs: Any) -> str:
        if broken:
            strike()
        text = dumps(*args, **kwargs)
        if reached():
            broken.append(True)
            return text[: len(text) // 2]
        return text

    return called


def _owner(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, importlib.import_module(module)), name
