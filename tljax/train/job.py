"""A job: everything that a run needs, as values and functions; and the life of a run from start or restore to end."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tljax.base.errors import RunError, UserError
from tljax.base.processes import agreed, place, several
from tljax.checkpoints.run import RunCheckpoints
from tljax.train import divergence, hooks
from tljax.train.continuing import (
    Facts,
    check_digests,
    claim,
    compared,
    described,
    notes,
    refuse,
    say_differences,
)
from tljax.train.display import Display
from tljax.train.lock import owned, seen_by_all
from tljax.train.loop import run_loop
from tljax.train.outcome import recorded
from tljax.train.records import Records
from tljax.train.scalars import open_scalars
from tljax.train.settings import Settings
from tljax.train.state import State
from tljax.train.stopping import Stop, stop_on_signals


class Job(NamedTuple):
    """What `train` runs.

    Attributes:
      config: the resolved config, plain dicts and values.
      settings: the section `train`.
      steps: optimizer steps in all.
      interval: steps between evaluations.
      state: before the first step, placed on the mesh.
      step: (state, batches) → (state, metrics), compiled, `state` donated.
      batches: number of steps done → iterator of device-ready batches from there on.
      before: (steps done, state) → the state to take the next step from.
      shapes: steps done → the shapes, dtypes and shardings of the state that is saved then.
      events: steps done → a line on what begins there.
      evaluations: split name → (state → (numbers, tables)), in the order in which they are shown.
      main: (metric that chooses, "max" or "min").
      schedule: step → learning rate.
      digests: {"pretrained": …, "live": …}; a restore refuses other ones.
      facts: what the run trains from, on and with; a restore refuses others.
      summary: what `inspect.json` holds: the table of stages.
      examine: state → the record of kind "domains" at the end of the run; or None.
      flops: () → FLOPs of a compiled step, in the mean of those taken; None where nobody counts them.
    """

    config: dict[str, Any]
    settings: Settings
    steps: int
    interval: int
    state: State
    step: Callable
    batches: Callable[[int], Iterator[Any]]
    evaluations: Mapping[str, Callable[[State], tuple[dict, dict]]]
    main: tuple[str, str]
    schedule: Callable[[int], Any]
    digests: Mapping[str, str]
    summary: Mapping[str, Any]
    shapes: Callable[[int], State]
    facts: Facts = Facts()
    events: Mapping[int, str] = {}
    before: Callable[[int, State], State] = lambda step, state: state
    examine: Callable[[State], dict[str, Any]] | None = None
    flops: Callable[[], float | None] = lambda: None


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last one.
      step: steps done.
      reason: why it stopped early, or None.
      signal: the number of the signal that stopped it, or None.
      metrics: split → numbers, of the checkpoint that was chosen (the best on validation, else the last).
    """

    state: State
    step: int
    reason: str | None
    signal: int | None
    metrics: dict[str, dict[str, float]]


class _Run(NamedTuple):
    """A job on its way: what the functions below share. `line` is what records.jsonl will say of it."""

    job: Job
    workdir: Path
    records: Records
    checkpoints: RunCheckpoints
    best: hooks.Best
    display: Display
    line: dict[str, Any]


def train(job: Job, workdir: Path, *, display: Display, allow: Sequence[str] = ()) -> Result:
    """Trains `job` in `workdir`, from its newest intact checkpoint if there is one.

    Args:
      job: the run.
      workdir: the run folder.
      display: what a person sees.
      allow: sections of the config that may differ from those with which the checkpoint was written.

    Raises:
      UserError: the workdir belongs to another config, pretrained tree, live set, data set or mesh, or another process
        is at work in it.
      RunError: a loss or gradient is not finite, the disk is full, the place is gone; the checkpoints are intact.
    """
    with opened(job, Path(workdir), display, allow) as run:
        return _train(run, allow)


def replay(job: Job, workdir: Path, *, display: Display) -> str:
    """Takes the run to the step at which it diverged, and runs that one operation by operation.

    The records are cut back to the checkpoint, as at any start; nothing else is written.

    Returns:
      a text that says where the first value that is not finite came from.

    Raises:
      UserError: no step was recorded, or as `train`.
    """
    if several():
        raise UserError("--debug_nans runs operations one by one, which one process does. Give --distributed=off.")
    workdir = Path(workdir)
    step = divergence.last_kept(workdir)
    with opened(job, workdir, display, ()) as run:
        state, start, _ = _restored(run, ())
        if start >= step:
            raise UserError(f"The checkpoints in {workdir} are of step {start}, and step {step} is to be replayed.")
        run.line.clear()  # no run of its own
        batches = job.batches(start)
        for done in range(start, step - 1):
            state, _ = job.step(job.before(done, state), next(batches))
        state, (batch, same) = job.before(step - 1, state), divergence.kept_batch(workdir, step, next(batches))
        found = divergence.locate(job.step, state, batch)
    data = "" if same else " (the data give another batch now)"
    if found is None:
        return f"Step {step}, with its recorded batch{data}, is finite operation by operation; its fusions were not."
    return f"Step {step}, with its recorded batch{data}: the first {found.what} is in {found.place}\n{found.message}"


@contextmanager
def opened(job: Job, workdir: Path, display: Display, allow: Sequence[str]) -> Iterator[_Run]:
    """The job in its folder, with everything that must be closed again; failures of the place become a `RunError`."""
    try:
        with owned(workdir, say=display.say):
            agreed(lambda: claim(workdir, job.config, job.digests, job.summary, allow=allow))
            seen_by_all(workdir)
            kept = {name: getattr(job.settings, name) for name in ("keep_last", "keep_every", "keep_best")}
            checkpoints = RunCheckpoints(workdir / "checkpoints", **kept, say=display.say)
            best = hooks.Best(*job.main, job.settings.patience)
            records, live = Records(workdir), job.summary.get("total", {}).get("live_at_end", 0)
            known = {"steps": job.steps, "live_parameters": live}
            try:
                with recorded(workdir, job.config, job.digests, **known) as line:
                    yield _Run(job, workdir, records, checkpoints, best, display, line)
            finally:
                records.close()
                checkpoints.close()
    except OSError as error:
        if not _belongs(error, workdir):
            raise
        raise RunError(
            f"The run folder {workdir} cannot be written or read: {error}. The checkpoints that stand there are "
            "untouched; the same command continues from the newest once the place is in order."
        ) from error


def _belongs(error: OSError, workdir: Path) -> bool:
    """Whether the failure is one of the run folder: it names a path in it or above it, or none (an open file's)."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
    path, folder = Path(os.fsdecode(error.filename)).absolute(), workdir.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _train(run: _Run, allow: Sequence[str]) -> Result:
    job, started = run.job, time.monotonic()
    state, start, meta = _restored(run, allow)
    seconds = meta.get("seconds", 0.0)

    def elapsed() -> float:
        return seconds + time.monotonic() - started

    def before(step: int, state: State) -> State:
        run.line["step"] = step
        if step in job.events:
            run.display.say(f"step {step}: {job.events[step]}")
        return job.before(step, state)

    stop = stop_on_signals()
    try:
        with run.display.progress(start, job.steps):
            around, evaluate = hooks_of(run, elapsed, stop, start, meta)
            state, step, reason = run_loop(
                job.step,
                state,
                job.batches(start),
                start=start,
                steps=job.steps,
                hooks=(*around, stop.hook),
                before=before,
                reason=evaluate(start, state, {}) if meta.get("due") else run.best.reason,
            )
    except divergence.Diverged as error:
        place = divergence.keep(run.workdir, error, job.batches(error.step - 1))
        raise RunError(f"{error} The batch is in {place}; --debug_nans finds the operation.") from error
    finally:
        stop.undo()
        run.checkpoints.wait()
    run.line["step_flops"] = job.flops()
    if stop.received() is not None:
        chosen = {"validation": run.best.numbers} if run.best.step is not None else {}
        run.line.update(step=step, best_step=run.best.step, metrics=chosen, error=reason, seconds=round(elapsed(), 3))
        return Result(state, step, reason, stop.received(), {})
    # A run that was finished before keeps the time that it took.
    return Result(state, step, reason, None, conclude(run, state, step, elapsed() if step > start else seconds))


def tree_of(state: State) -> dict[str, Any]:
    """The part of a state that a checkpoint holds: frozen leaves come from the pretrained checkpoint."""
    return {
        "live": state.live,
        "optimizer": state.optimizer,
        "batch_stats": state.batch_stats,
        "method": state.method,
        "average": state.average,
        "skipped": state.skipped,
    }


def restored(job_state: State, tree: Mapping[str, Any], step: int) -> State:
    """The inverse of `tree_of`."""
    return job_state._replace(**tree, step=place(jax.numpy.int32(step), job_state.step.sharding))


def shapes_of(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def load_trained(
    workdir: Path, wanted: Callable[[int], Mapping[str, Any]], digests: Mapping[str, str], *, say: Callable[[str], None]
) -> tuple[dict[str, Any], int] | None:
    """What a run trained: of its best checkpoint, else of its newest.

    Args:
      workdir: the run folder.
      wanted: steps done → {"live": …, "batch_stats": …, "average": …}, shapes with shardings.
      digests: of the pretrained tree and the live set; a checkpoint with others is refused.
      say: prints one line.

    Returns:
      ({"live": …, "batch_stats": …, "average": …}, step), or None where there is no checkpoint.
    """
    checkpoints = RunCheckpoints(Path(workdir) / "checkpoints", say=say)
    try:
        if not checkpoints.steps():
            return None
        which = "best" if checkpoints.has_best() else None
        tree, meta = checkpoints.restore(wanted, step=which, partial=True)
        check_digests(digests, meta)
        return tree, meta["step"]
    finally:
        checkpoints.close()


def _restored(run: _Run, allow: Sequence[str]) -> tuple[State, int, dict[str, Any]]:
    """(state, steps done, meta of the checkpoint, {} without one); records and the best so far are those of then."""
    job, say = run.job, run.display.say
    if not run.checkpoints.steps():
        run.records.truncate(0)
        return job.state, 0, {}
    now = described(job.config, job.facts)
    partial = _check(run, now, allow)
    tree, meta = run.checkpoints.restore(lambda step: tree_of(job.shapes(step)), lenient=partial)
    if partial:
        tree = _filled(tree, tree_of(job.state), say)
    missing = run.records.truncate(meta["offset"])
    if missing:
        say(f"warning: {missing} bytes of {run.records.path} are missing; the lines that are left stay.")
    if not partial:  # what was best was so with other leaves
        run.best.load(meta["best"])
    for line in notes(meta, now):
        say(f"warning: {line}")
    say(f"continuing from step {meta['step']} of {job.steps}")
    return restored(job.state, tree, meta["step"]), meta["step"], meta


def _check(run: _Run, now: Mapping[str, Any], allow: Sequence[str]) -> bool:
    """Refuses the newest checkpoint if it differs in what was not allowed; whether other leaves train than in it."""
    job = run.job
    step, leaves, meta = run.checkpoints.newest()
    there = {name.removeprefix("live/") for name in leaves if name.startswith("live/")}
    here = set(job.shapes(step).live)
    found = compared(meta, there, here, run=now, digests=job.digests)
    refuse(run.workdir, found, allow)
    say_differences(found, run.display.say)
    if there == here:
        return False
    if there - here or job.shapes(step) is not job.shapes(0):
        raise UserError(
            f"The run in {run.workdir} cannot go on with these leaves: what no longer trains would lose what it "
            "learnt, and phases must be those of the checkpoint. Export the run, and start a new one from the export."
        )
    return True


def _filled(tree: Any, first: Any, say: Callable[[str], None]) -> Any:
    """`tree` with what the checkpoint does not hold as it is before the first step."""
    own = jax.tree.map(lambda x, begun: begun if isinstance(x, jax.ShapeDtypeStruct) else x, tree, first)
    count = sum(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))
    say(f"{count} arrays of leaves and optimizer begin anew, {len(jax.tree.leaves(tree)) - count} go on")
    return own


def hooks_of(
    run: _Run, elapsed: Callable[[], float], stop: Stop, start: int, restored: Mapping[str, Any]
) -> tuple[list[hooks.Hook], Callable[[int, State, dict], str | None]]:
    """(what happens around steps, what evaluates after one) of a run that was `restored`, or not, at step `start`."""
    job, records, best = run.job, run.records, run.best
    due: list[int] = []
    described_now = described(job.config, job.facts)

    def meta(step: int) -> dict[str, Any]:
        fixed = {"step": step, "best": best.as_dict(), "digests": dict(job.digests), "run": described_now}
        more = {"due": True} if step in due else {}
        return {**fixed, "offset": records.settled(), "seconds": round(elapsed(), 3), **more}

    scalars = open_scalars(run.workdir, config=job.config, start=start, project=job.settings.wandb)
    log, settle = hooks.log(
        records,
        every=job.settings.log_every,
        schedule=job.schedule,
        show=run.display.step,
        scalars=scalars,
    )

    def keep_best(step: int, state: State) -> None:
        settle()
        run.checkpoints.save_best(step, tree_of(state), meta(step))

    def save(step: int, state: State) -> None:
        if best.step != step:  # the best was saved a moment ago
            run.checkpoints.save(step, tree_of(state), meta(step))

    evaluate = hooks.Hook()
    if "validation" in job.evaluations:
        evaluate = hooks.evaluate(
            job.evaluations["validation"],
            records,
            best,
            every=job.interval,
            last=job.steps,
            keep=keep_best,
            say=run.display.say,
            settle=settle,
            stop=stop,
            due=due,
            scalars=scalars,
        )
    every = job.settings.save_every or job.interval
    there = start if restored and not restored.get("due") else None
    return [log, evaluate, hooks.save(save, every=every, last=job.steps, settle=settle, saved=there)], evaluate.after


def conclude(run: _Run, state: State, step: int, seconds: float) -> dict[str, dict[str, float]]:
    """The numbers of the chosen checkpoint on every split, recorded."""
    best, chosen, of_step = run.best, state, step
    if best.step not in (None, step):
        tree, meta = run.checkpoints.restore(lambda step: tree_of(run.job.shapes(step)), step="best")
        chosen, of_step = restored(run.job.state, tree, meta["step"]), meta["step"]
    metrics = {"validation": best.numbers} if best.step is not None else {}
    for split, evaluation in run.job.evaluations.items():
        if split != "validation":
            numbers, tables = evaluation(chosen)
            metrics[split] = numbers
            run.records.evaluation(of_step, split, numbers, tables)
    if run.job.examine is not None:
        run.records.write("domains", step=of_step, **run.job.examine(chosen))
    named = {"metric": best.metric, "mode": best.direction, "value": best.value, "split": "validation"}
    run.records.write("end", step=step, best_step=best.step, best=named, seconds=round(seconds, 3))
    ended = {"step": step, "best_step": best.step, "seconds": round(seconds, 3)}
    run.line.update(state="done", error=None, metrics=metrics, **ended)
    return metrics
