"""Several jobs whose steps are one: each keeps its own folder, records and checkpoints, as if it ran by itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from tljax.train import hooks
from tljax.train.display import Display
from tljax.train.divergence import Diverged
from tljax.train.job import Job, conclude, hooks_of, opened
from tljax.train.state import State
from tljax.train.stopping import stop_on_signals


class Ended(NamedTuple):
    """How one of the jobs ended: its last state and step, and why it failed, or None."""

    state: State
    step: int
    error: str | None = None


def train_together(
    jobs: Sequence[Job],
    workdirs: Sequence[Path],
    step: Callable[[State, Any], tuple[State, dict]],
    batches: Iterator[Any],
    *,
    display: Display,
    finished: Callable[[Path], Any] = lambda workdir: None,
) -> tuple[list[str | None], int | None]:
    """Trains the jobs from their first step on, each in its folder.

    Args:
      jobs: with equal settings, and as many steps.
      workdirs: of each; new ones.
      step: (states, batches) → (states, metrics), the leaves of all with a leading axis of jobs.
      batches: for `step`, ready on the device.
      display: what a person sees: the progress of the first job.
      finished: called with the folder of each job that is done.

    Returns:
      (why each job failed, or None; the number of the signal that stopped all of them, or None). A job that diverges
      ends alone. After a signal each has a checkpoint, from which its run can be continued by itself.

    Raises:
      UserError, RunError: as `tljax.train.job.train`.
    """
    started, processor, quiet = time.monotonic(), time.process_time(), Display(Console(quiet=True))
    steps, settings, count = jobs[0].steps, jobs[0].settings, len(jobs)
    every = {jobs[0].interval, settings.save_every or jobs[0].interval}
    ended: dict[int, Ended] = {}
    stop = stop_on_signals()

    def elapsed() -> float:
        """The share of one job in the time of all."""
        return (time.monotonic() - started) / count

    with ExitStack() as stack:
        stack.callback(stop.undo)
        pairs = zip(jobs, workdirs, strict=True)
        runs = [
            stack.enter_context(opened(job, Path(folder), quiet if i else display, ()))
            for i, (job, folder) in enumerate(pairs)
        ]
        for run in runs:
            run.records.truncate(0)
        around = [hooks_of(run, elapsed, stop, 0, {})[0] for run in runs]
        for hook in (each for mine in around for each in mine):
            stack.callback(hook.close)
        stack.enter_context(display.progress(0, steps))
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(job.state for job in jobs))
        pending: list[tuple[int, dict]] = []
        done = 0
        while done < steps and len(ended) < count and stop.received() is None:
            state, metrics = step(state, next(batches))
            done += 1
            _log(around, pending, ended, state)  # of the step before: the device works on this one meanwhile
            pending.append((done, metrics))
            if done == steps or any(done % each == 0 for each in every):
                _log(around, pending, ended, state)
                _evaluate(around, ended, state, done)
        _log(around, pending, ended, state)
        for i, run in enumerate(runs):
            mine = ended.setdefault(i, Ended(row_of(state, i), done))
            share = round((time.process_time() - processor) / count, 3)
            run.line.update(step=mine.step, seconds=round(elapsed(), 3), processor_seconds=share)
            if mine.error is not None:
                run.line.update(state="failed", error=mine.error)
                continue
            _settle(run, around[i], mine)
            if stop.received() is None:
                conclude(run, mine.state, mine.step, elapsed())
                finished(run.workdir)
    return [ended[i].error for i in range(count)], stop.received()


def row_of(tree: Any, i: int) -> Any:
    """What belongs to job `i`."""
    return jax.tree.map(lambda x: x[i], tree)


def _settle(run: Any, around: Sequence[hooks.Hook], ended: Ended) -> None:
    """Ends what happens around the steps of a job, and waits until its checkpoint is there."""
    for hook in around:
        hook.finish(ended.step, ended.state)
    run.checkpoints.wait()


def _log(
    around: Sequence[Sequence[hooks.Hook]], pending: list[tuple[int, dict]], ended: dict[int, Ended], state: State
) -> None:
    """Hands the metrics of steps that are done to each job that goes on; one that diverged ends."""
    while pending:
        step, metrics = pending.pop(0)
        metrics = jax.device_get(metrics)
        for i, (log, *_) in enumerate(around):
            if i not in ended:
                try:
                    log.after(step, None, row_of(metrics, i))
                    log.finish(step, None)  # reads what was handed over, so that a failure shows here
                except Diverged as error:
                    ended[i] = Ended(row_of(state, i), step, str(error))


def _evaluate(around: Sequence[Sequence[hooks.Hook]], ended: dict[int, Ended], state: State, step: int) -> None:
    """Evaluates and saves each job that goes on; one whose patience is over ends with what it has."""
    for i, (_, *others) in enumerate(around):
        if i not in ended:
            mine = row_of(state, i)
            reasons = [hook.after(step, mine, {}) for hook in others]
            if any(reasons):
                ended[i] = Ended(mine, step)
