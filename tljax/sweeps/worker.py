"""A worker: it claims trials and runs them, one after another, until none is left."""

import contextlib
import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.lock import Held, held
from tljax.sweeps.axes import text_of
from tljax.sweeps.study import Claimed, Study, steadily
from tljax.sweeps.trials import (
    LOCK,
    LOG,
    Plan,
    command_of,
    folder_of,
    found_in,
    hash_of,
    read_trial,
    resolved,
    said_last,
    start,
    write_trial,
)

POLL, IDLE = 0.5, 1.0
"""Seconds between two looks at a run, and at a study in which nothing waits."""
MOST_DEATHS = 3
"""A trial whose workers have died so many times has failed: it may be what kills them."""
STOPPED = (143, 130, -signal.SIGTERM, -signal.SIGINT)
"""How a run ends that a signal stopped."""


class Stop:
    """Whether the worker is asked to end, by SIGINT or SIGTERM. A class because a handler changes it.

    The first signal lets the run save and end; what comes after it ends the run at once.
    """

    def __init__(self):
        self.signal: int | None = None
        self.twice = False

    def __call__(self, number: int, frame: Any) -> None:
        self.twice = self.signal is not None
        self.signal = number

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def heard(self) -> Iterator["Stop"]:
        """Signals are heard as long as the block runs."""
        former = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


class Outcome(NamedTuple):
    """How a run ended: "complete", "pruned", "failed", or "interrupted", which leaves it to be continued."""

    state: str
    value: float | None = None
    error: str | None = None


class Worker(NamedTuple):
    """What the functions below share.

    Attributes:
      study: open.
      plan: what its trials have in common.
      stop: what ends the worker.
      say: prints one line.
      tick: called every now and then, whatever the worker does: renews the table.
      announce: the command of a trial, or None after its end → nothing; tells the other processes of a slice.
      beat: seconds between signs of life.
    """

    study: Study
    plan: Plan
    stop: Stop
    say: Callable[[str], None] = print
    tick: Callable[[], None] = lambda: None
    announce: Callable[[list[str] | None], None] = lambda command: None
    beat: float = 10.0

    @property
    def metric(self) -> str:
        return self.study.about["metric"]

    @property
    def mode(self) -> str:
        return self.study.about["mode"]


def work(worker: Worker) -> None:
    """Runs trials until none waits and none runs elsewhere, or until the worker is stopped.

    A worker without a trial stays, since the worker of a trial that runs elsewhere may die.
    """
    while not worker.stop.asked:
        claimed = steadily(worker.study.claim)
        if claimed is not None:
            run(worker, claimed)
        elif worker.study.open():
            worker.tick()
            time.sleep(IDLE)
        else:
            return


def run(worker: Worker, claimed: Claimed) -> None:
    """Runs a trial that was claimed, or continues it, and ends it in the study; one that was stopped waits again."""
    config = resolved(worker.plan, claimed.values)
    name = hash_of(config)
    folder = folder_of(worker.plan, name)
    facts = {"number": claimed.number, "hash": name, "values": claimed.values}
    facts["names"] = {axis: text_of(label) for axis, label in claimed.chosen.items()}
    with contextlib.ExitStack() as stack:
        if not _owned(worker, claimed, folder, stack):
            steadily(partial(worker.study.give_back, claimed))
            return
        before = read_trial(folder)
        if before.get("state") in ("complete", "pruned") or (before.get("state") == "failed" and not claimed.again):
            outcome = Outcome(before["state"], before["value"], before["error"])
            worker.say(f"trial {claimed.number} ({name}): {outcome.state} before")
        elif claimed.deaths >= MOST_DEATHS:
            outcome = Outcome("failed", error=f"{claimed.deaths} workers died while they had this trial.")
        else:
            shown = ", ".join(f"{axis}={text}" for axis, text in facts["names"].items())
            worker.say(f"trial {claimed.number} ({name}): {shown}")
            write_trial(folder, **facts, state="running", value=None, error=None)
            outcome = _watched(worker, claimed, folder)
        _settle(worker, claimed, folder, facts, outcome)


def _settle(worker: Worker, claimed: Claimed, folder: Path, facts: dict[str, Any], outcome: Outcome) -> None:
    """Writes how a trial ended into its folder, then into the study: whoever finds the one may add the other."""
    if outcome.state == "interrupted":
        steadily(partial(worker.study.give_back, claimed))
        worker.say(f"trial {claimed.number}: stopped; it waits to be continued")
        return
    write_trial(folder, **facts, state=outcome.state, value=outcome.value, error=outcome.error)
    steadily(partial(worker.study.finish, claimed, outcome.state, outcome.value, outcome.error))
    value = "" if outcome.value is None else f", {worker.metric} {outcome.value:.4f}"
    why = "" if outcome.error is None else f": {outcome.error.splitlines()[-1]}"
    worker.say(f"trial {claimed.number}: {outcome.state}{value}{why}")


def _owned(worker: Worker, claimed: Claimed, folder: Path, stack: contextlib.ExitStack) -> bool:
    """Takes the folder of a trial until `stack` ends; False where the worker is stopped before.

    A worker that was taken for dead may still hold it, or have a trial with the same values; and a run outlives its
    worker for as long as it takes to save. Both are waited for, with signs of life.
    """
    for name in (LOCK, None):
        while True:
            try:
                if name is not None:
                    stack.enter_context(held(folder, name, say=worker.say))
                else:
                    with held(folder, say=worker.say):  # the lock of the run itself
                        pass
                break
            except Held:
                steadily(partial(worker.study.beat, claimed))
                worker.tick()
                time.sleep(IDLE)
                if worker.stop.asked:
                    return False
    return True


def _watched(worker: Worker, claimed: Claimed, folder: Path) -> Outcome:
    """Runs the trial's process to its end, with signs of life; ends it where the pruner or a signal asks for that."""
    command = command_of(worker.plan, claimed.values, folder)
    worker.announce(command)
    process = start(command, folder / LOG)
    told, pruned, ending, last = 0, False, False, -math.inf
    try:
        while process.poll() is None:
            if time.monotonic() - last > worker.beat:
                steadily(partial(worker.study.beat, claimed))
                last = time.monotonic()
            values = found_in(folder, worker.metric).values
            for number in range(told, len(values)):
                pruned |= steadily(partial(worker.study.report, claimed, number + 1, values[number]))
            told = len(values)
            if (worker.stop.asked or pruned) and not ending:
                ending = True
                process.terminate()
            if worker.stop.twice:
                process.kill()
            worker.tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
    finally:
        if process.poll() is None:  # this worker failed
            process.terminate()
            process.wait()
        worker.announce(None)
    values = found_in(folder, worker.metric).values
    for number in range(told, len(values)):
        steadily(partial(worker.study.report, claimed, number + 1, values[number]))
    return _outcome(worker, process.returncode, folder, pruned=pruned)


def _outcome(worker: Worker, code: int, folder: Path, *, pruned: bool) -> Outcome:
    found = found_in(folder, worker.metric)
    if code == 0 and found.end is not None:
        best = found.end.get("best") or {}
        value, named = best.get("value"), (best.get("metric"), best.get("mode", worker.mode))
        if named != (worker.metric, worker.mode):
            return Outcome(
                "failed",
                error=f"The run chose its checkpoint by {named[0]} ({named[1]}), and the study compares by "
                f"{worker.metric} ({worker.mode}): name that `metric` and `mode` in sweep().",
            )
        if value is None or not math.isfinite(value):
            return Outcome("failed", error=f"The run ended without a finite {worker.metric} on validation: {value}.")
        return Outcome("complete", value)
    if code in STOPPED and pruned and not worker.stop.asked:
        return Outcome("pruned", (max if worker.mode == "max" else min)(found.values, default=None))
    if code in STOPPED or (worker.stop.twice and code == -signal.SIGKILL):
        return Outcome("interrupted")
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return Outcome("failed", error=f"The run ended with {how}. It said last:\n{said_last(folder)}")
