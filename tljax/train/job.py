"""A job: everything that a run needs, as values and functions; and the life of a run from start or restore to end."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tljax.base.errors import UserError
from tljax.base.processes import agreed, place
from tljax.checkpoints.run import RunCheckpoints
from tljax.train import hooks
from tljax.train.display import Display
from tljax.train.joint import seen_by_all
from tljax.train.lock import owned
from tljax.train.loop import run_loop
from tljax.train.records import Records, plain
from tljax.train.settings import Settings
from tljax.train.state import State


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
      summary: what `inspect.json` holds: the table of stages.
      examine: state → the record of kind "domains" at the end of the run; or None.
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
    events: Mapping[int, str] = {}
    before: Callable[[int, State], State] = lambda step, state: state
    examine: Callable[[State], dict[str, Any]] | None = None


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


# Keys that may differ between the config of a workdir and the one that continues it: they change how long or how
# often, not what.
CONTINUABLE = ("steps", "epochs", "eval_every", "save_every", "log_every", "keep_last", "patience")


class _Run(NamedTuple):
    """A job on its way: what the functions below share."""

    job: Job
    workdir: Path
    records: Records
    checkpoints: RunCheckpoints
    best: hooks.Best
    display: Display


def train(job: Job, workdir: Path, *, display: Display) -> Result:
    """Trains `job` in `workdir`, from its newest intact checkpoint if there is one.

    Raises:
      UserError: the workdir belongs to another config, another pretrained tree or another live set, or another process
        is at work in it.
      RunError: the loss is not finite, or the disk is full; the checkpoints are intact.
    """
    workdir = Path(workdir)
    with owned(workdir, say=display.say):
        return _owning(job, workdir, display)


def _owning(job: Job, workdir: Path, display: Display) -> Result:
    agreed(lambda: claim(workdir, job.config, job.digests, job.summary))
    seen_by_all(workdir)
    checkpoints = RunCheckpoints(workdir / "checkpoints", keep_last=job.settings.keep_last, say=display.say)
    best = hooks.Best(*job.main, job.settings.patience)
    run = _Run(job, workdir, Records(workdir), checkpoints, best, display)
    try:
        return _train(run)
    finally:
        run.records.close()
        checkpoints.close()


def _train(run: _Run) -> Result:
    job, started = run.job, time.monotonic()
    state, start, seconds = _restore(run)

    def elapsed() -> float:
        return seconds + time.monotonic() - started

    def before(step: int, state: State) -> State:
        if step in job.events:
            run.display.say(f"step {step}: {job.events[step]}")
        return job.before(step, state)

    stop, received, undo = hooks.stop_on_signals()
    try:
        with run.display.progress(start, job.steps):
            state, step, reason = run_loop(
                job.step,
                state,
                job.batches(start),
                start=start,
                steps=job.steps,
                hooks=(*_hooks(run, elapsed), stop),
                before=before,
            )
    finally:
        undo()
        run.checkpoints.wait()
    if received() is not None:
        return Result(state, step, reason, received(), {})
    # A run that was finished before keeps the time that it took.
    return Result(state, step, reason, None, _conclude(run, state, step, elapsed() if step > start else seconds))


def tree_of(state: State) -> dict[str, Any]:
    """The part of a state that a checkpoint holds: frozen leaves come from the pretrained checkpoint."""
    return {
        "live": state.live,
        "optimizer": state.optimizer,
        "batch_stats": state.batch_stats,
        "method": state.method,
        "average": state.average,
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


def claim(workdir: Path, config: Mapping[str, Any], digests: Mapping[str, str], summary: Mapping[str, Any]) -> None:
    """Writes the run's config.json and inspect.json, or refuses a folder that holds another config."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    mine = plain(dict(config))
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf8"))["config"]
        differing = [line for line in differences(theirs, mine) if not line.startswith(_continuable())]
        if differing:
            listing = "\n".join(f"  - {line}" for line in differing)
            raise UserError(
                f"The workdir {workdir} belongs to another config. It differs in (there → here):\n{listing}\n"
                "Give another --workdir, or remove this one."
            )
    devices = jax.devices()
    content = {
        "config": mine,
        "digests": dict(digests),
        "versions": {name: version(name) for name in ("tljax", "jax", "flax", "optax", "numpy")},
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
    (workdir / "inspect.json").write_text(json.dumps(plain(dict(summary)), indent=2) + "\n", encoding="utf8")


def _continuable() -> tuple[str, ...]:
    return tuple(f"train.{key}:" for key in CONTINUABLE)


def differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    """One line for each value that differs between two nested dicts."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return [
            line
            for key in sorted({*theirs, *mine})
            for line in differences(theirs.get(key), mine.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if theirs == mine else [f"{path}: {theirs!r} → {mine!r}"]


def check_digests(digests: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another pretrained tree or another live set."""
    for name, what in (("pretrained", "pretrained tree"), ("live", "set of live leaves")):
        if meta["digests"][name] != digests[name]:
            raise UserError(
                f"The checkpoint was trained with another {what} "
                f"(digest {meta['digests'][name]}, this one has {digests[name]})."
            )


def _restore(run: _Run) -> tuple[State, int, float]:
    """(state, steps done, seconds spent before)."""
    job = run.job
    if not run.checkpoints.steps():
        run.records.truncate(0)
        return job.state, 0, 0.0
    tree, meta = run.checkpoints.restore(lambda step: tree_of(job.shapes(step)))
    check_digests(job.digests, meta)
    run.records.truncate(meta["offset"])
    run.best.load(meta["best"])
    run.display.say(f"continuing from step {meta['step']} of {job.steps}")
    return restored(job.state, tree, meta["step"]), meta["step"], meta["seconds"]


def _hooks(run: _Run, elapsed: Callable[[], float]) -> list[hooks.Hook]:
    job, records, best = run.job, run.records, run.best

    def meta(step: int) -> dict[str, Any]:
        fixed = {"step": step, "best": best.as_dict(), "digests": dict(job.digests)}
        return {**fixed, "offset": records.offset, "seconds": round(elapsed(), 3)}

    log, settle = hooks.log(
        records,
        every=job.settings.log_every,
        schedule=job.schedule,
        show=run.display.step,
        folder=run.workdir / "tensorboard",
    )

    def keep_best(step: int, state: State) -> None:
        settle()
        run.checkpoints.save_best(step, tree_of(state), meta(step))

    def save(step: int, state: State) -> None:
        if best.step != step:  # the best was saved a moment ago
            run.checkpoints.save(step, tree_of(state), meta(step))

    found = [log]
    if "validation" in job.evaluations:
        evaluation = job.evaluations["validation"]
        found.append(
            hooks.evaluate(
                evaluation, records, best, every=job.interval, last=job.steps, keep=keep_best, say=run.display.say
            )
        )
    every = job.settings.save_every or job.interval
    return [*found, hooks.save(save, every=every, last=job.steps, settle=settle)]


def _conclude(run: _Run, state: State, step: int, seconds: float) -> dict[str, dict[str, float]]:
    """The numbers of the chosen checkpoint on every split, recorded."""
    best, chosen, of_step = run.best, state, step
    if run.checkpoints.has_best() and best.step != step:
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
    named = {"metric": best.metric, "value": best.value, "split": "validation"}
    run.records.write("end", step=step, best_step=best.step, best=named, seconds=round(seconds, 3))
    return metrics
