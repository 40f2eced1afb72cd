"""A worker: it claims trials and runs them, one after another, until none is left."""

import contextlib
import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
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
    command_of_several,
    folder_of,
    found_in,
    group_of,
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
MOST_TOGETHER = 32
"""Probes that train together, at most."""
USER_ERROR = 2
"""The exit code of a process whose input is wrong."""
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
      together: whether probes may train together.
    """

    study: Study
    plan: Plan
    stop: Stop
    say: Callable[[str], None] = print
    tick: Callable[[], None] = lambda: None
    announce: Callable[[list[str] | None], None] = lambda command: None
    beat: float = 10.0
    together: bool = True

    @property
    def metric(self) -> str:
        return self.study.about["metric"]

    @property
    def mode(self) -> str:
        return self.study.about["mode"]


class Taken(NamedTuple):
    """A trial whose folder this worker holds: what was claimed, the folder, what trial.json says of it, its config."""

    claimed: Claimed
    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]


class Outcome(NamedTuple):
    """How a run ended: "complete", "pruned", "failed", or "interrupted", which leaves it to be continued."""

    state: str
    value: float | None = None
    error: str | None = None


def work(worker: Worker) -> None:
    """Runs trials until none waits and none runs elsewhere, or until the worker is stopped.

    A worker without a trial stays, since the worker of a trial that runs elsewhere may die.
    """
    while not worker.stop.asked:
        claimed = steadily(worker.study.claim)
        if claimed is not None:
            run(worker, [claimed, *_companions(worker, claimed)])
        elif steadily(worker.study.open):
            worker.tick()
            time.sleep(IDLE)
        else:
            return


def _companions(worker: Worker, claimed: Claimed) -> list[Claimed]:
    """Other trials, now this worker's too, that can train together with one: probes over the same stored features."""
    group = group_of(resolved(worker.plan, claimed.values))
    sweep, found = worker.study.sweep, []
    if not worker.together or group is None or sweep.sampled or sweep.pruner:
        return found

    def like(values: dict[str, Any]) -> bool:
        return group_of(resolved(worker.plan, values)) == group

    while len(found) < MOST_TOGETHER - 1 and (another := steadily(partial(worker.study.claim, like))):
        found.append(another)
    return found


def run(worker: Worker, claimed: Sequence[Claimed]) -> None:
    """Runs trials that were claimed, or continues them, and ends each in the study; what was stopped waits again."""
    with contextlib.ExitStack() as stack:
        taken = [found for each in _unequal(worker, claimed) if (found := _taken(worker, each, claimed, stack))]
        begun = [each for each in taken if (each.folder / "metrics.jsonl").exists()]
        fresh = [each for each in taken if each not in begun]
        if len(fresh) > 1 and not worker.stop.asked and not _together(worker, fresh, taken):
            fresh, taken = [], begun  # they are settled
        while taken:
            _alone(worker, taken[0], taken)
            taken = taken[1:]


def _unequal(worker: Worker, claimed: Sequence[Claimed]) -> list[Claimed]:
    """One trial of each config; others of the same config wait until it is done, and are then told what came out."""
    first: dict[str, Claimed] = {}
    for each in claimed:
        if first.setdefault(hash_of(resolved(worker.plan, each.values)), each) is not each:
            steadily(partial(worker.study.give_back, each))
    return list(first.values())


def _taken(
    worker: Worker, claimed: Claimed, everything: Sequence[Claimed], stack: contextlib.ExitStack
) -> Taken | None:
    """A trial with its folder, held until `stack` ends; None where there is nothing to run, and it is settled."""
    config = resolved(worker.plan, claimed.values)
    name = hash_of(config)
    folder = folder_of(worker.plan, name)
    facts = {"number": claimed.number, "hash": name, "values": claimed.values}
    facts["names"] = {axis: text_of(label) for axis, label in claimed.chosen.items()}
    taken = Taken(claimed, folder, facts, config)
    if not _owned(worker, folder, everything, stack):
        _settle(worker, taken, Outcome("interrupted"))
        return None
    before = read_trial(folder)
    if before.get("state") in ("complete", "pruned") or (before.get("state") == "failed" and not claimed.again):
        _settle(worker, taken, Outcome(before["state"], before["value"], before["error"]), known=True)
        return None
    if not claimed.again and found_in(folder, worker.metric).end is not None:  # its worker died before it could say so
        _settle(worker, taken, _outcome(worker, 0, folder, pruned=False, log=folder / LOG))
        return None
    if claimed.deaths >= MOST_DEATHS:
        _settle(worker, taken, Outcome("failed", error=f"{claimed.deaths} workers died while they had this trial."))
        return None
    return taken


def _owned(worker: Worker, folder: Path, claimed: Sequence[Claimed], stack: contextlib.ExitStack) -> bool:
    """Takes the folder of a trial until `stack` ends; False where the worker is stopped before.

    A worker that was taken for dead may still hold it, or have a trial with the same values; and a run outlives its
    worker for as long as it takes to save. Both are waited for, with signs of life of all that is claimed.
    """
    for name in (LOCK, None):
        while not worker.stop.asked:
            try:
                if name is not None:
                    stack.enter_context(held(folder, name, say=worker.say))
                else:
                    with held(folder, say=worker.say):  # the lock of the run itself
                        pass
                break
            except Held:
                _beat(worker, claimed)
                worker.tick()
                time.sleep(IDLE)
    return not worker.stop.asked


def _beat(worker: Worker, claimed: Sequence[Claimed]) -> None:
    for each in claimed:
        steadily(partial(worker.study.beat, each))


def _settle(worker: Worker, taken: Taken, outcome: Outcome, *, known: bool = False) -> None:
    """Writes how a trial ended into its folder, then into the study: whoever finds the one may add the other.

    Where it is `known`, the folder says so already.
    """
    claimed = taken.claimed
    if outcome.state == "interrupted":
        steadily(partial(worker.study.give_back, claimed))
        worker.say(f"trial {claimed.number}: stopped; it waits to be continued")
        return
    if not known:
        write_trial(taken.folder, **taken.facts, **outcome._asdict())
    steadily(partial(worker.study.finish, claimed, *outcome))
    value = "" if outcome.value is None else f", {worker.metric} {outcome.value:.4f}"
    why = "" if outcome.error is None else f": {outcome.error.splitlines()[-1]}"
    worker.say(f"trial {claimed.number}: {outcome.state}{value}{why}")


def _begin(worker: Worker, taken: Taken) -> None:
    shown = ", ".join(f"{axis}={text}" for axis, text in taken.facts["names"].items())
    worker.say(f"trial {taken.claimed.number} ({taken.facts['hash']}): {shown}")
    write_trial(taken.folder, **taken.facts, state="running", value=None, error=None)


def _alone(worker: Worker, taken: Taken, waiting: Sequence[Taken]) -> None:
    """Runs one trial in a process of its own; `waiting` are all that this worker still holds."""
    if worker.stop.asked:
        _settle(worker, taken, Outcome("interrupted"))
        return
    _begin(worker, taken)
    told, claimed = 0, taken.claimed

    def pruned() -> bool:
        nonlocal told
        values = found_in(taken.folder, worker.metric).values
        news = [worker.study.report(claimed, i, values[i]) for i in range(told, len(values))]
        told = len(values)
        return any(news)

    command = command_of(worker.plan, claimed.values, taken.folder)
    code, ended = _watched(worker, command, taken.folder / LOG, waiting, lambda: steadily(pruned))
    steadily(pruned)  # what it said last
    _settle(worker, taken, _outcome(worker, code, taken.folder, pruned=ended, log=taken.folder / LOG))


def _together(worker: Worker, trials: Sequence[Taken], waiting: Sequence[Taken]) -> bool:
    """Runs trials as one program; whether they have to be run one by one all the same."""
    for each in trials:
        _begin(worker, each)
    runs = [{"config": each.config, "workdir": str(each.folder)} for each in trials]
    log = trials[0].folder / LOG
    code, _ = _watched(worker, command_of_several(worker.plan, runs, trials[0].facts["hash"]), log, waiting)
    if code == USER_ERROR:
        worker.say(f"they cannot train together, and are run one by one: {said_last(log)}")
        return True
    for each in trials:
        complete = found_in(each.folder, worker.metric).end is not None
        outcome = _outcome(worker, 0 if complete else code, each.folder, pruned=False, log=log)
        _settle(worker, each, outcome)
    return False


def _watched(
    worker: Worker,
    command: list[str],
    log: Path,
    waiting: Sequence[Taken],
    pruned: Callable[[], bool] = lambda: False,
) -> tuple[int, bool]:
    """(exit code, whether the pruner ended it) of a process, run to its end with signs of life of all that waits."""
    worker.announce(command)
    process = start(command, log)
    ending, ended, last = False, False, -math.inf
    try:
        while process.poll() is None:
            if time.monotonic() - last > worker.beat:
                _beat(worker, [each.claimed for each in waiting])
                last = time.monotonic()
            ended = ended or pruned()
            if (worker.stop.asked or ended) and not ending:
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
    return process.returncode, ended


def _outcome(worker: Worker, code: int, folder: Path, *, pruned: bool, log: Path) -> Outcome:
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
    return Outcome("failed", error=f"The run ended with {how}. It said last:\n{said_last(log)}")
