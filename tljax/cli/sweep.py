"""`sweep`: runs every trial of a study that a config's `sweep()` describes, or joins others that do; loads no jax."""

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.choosing import chosen_by
from tljax.base.configs import set_value
from tljax.base.errors import RunError, UserError
from tljax.base.tables import lookup
from tljax.cli.config import load_sweep
from tljax.cli.distributed import launcher_of, number_of, place_of
from tljax.cli.main import OK, Arguments
from tljax.sweeps import LAUNCHERS
from tljax.sweeps.axes import Sweep, points, read_sweep, text_of
from tljax.tasks import MAIN


class Slice(NamedTuple):
    """The processes that make one worker: their name, the number of this one, the flags of a run in it."""

    name: str
    process: int
    flags: tuple[str, ...]


def run(arguments: Arguments) -> int:
    """Works at the study in `--study` until nothing of it is left; the same command elsewhere joins it.

    Returns:
      0 where all trials are complete or pruned, 3 where some failed.
    """
    options = arguments.options
    if options.study is None:
        raise UserError("Give --study=runs/NAME, the folder of the study.")
    if options.config is None:
        raise UserError("Give --config=configs/NAME.py, a config that defines sweep() beside get_config().")
    workers, grace = (number_of(f"--{name}", getattr(options, name), least=1) for name in ("workers", "grace"))
    launch, member = lookup(LAUNCHERS, options.launcher, what="launcher"), slice_of(options)
    alone = workers == 1 and options.launcher == "local"
    if member is not None and not alone:
        raise UserError("The processes of a slice are one worker: give each of them --workers=1 and no --launcher.")
    sweep, plan, about = _planned(arguments, member)
    if options.launcher == "dry":
        return launch(_order(arguments, sweep, workers))
    if member is not None and member.process:
        return _follow(plan, member)
    from tljax.sweeps.live import Screen
    from tljax.sweeps.study import open_study

    study = open_study(plan.study, sweep, about, storage=options.storage, grace=grace)
    try:
        screen = Screen(study)
        if options.retry:
            screen.say(f"{study.retry()} trials that failed run again")
        with screen.shown():
            if alone:
                code = _work(plan, study, screen, member, grace)
            else:
                code = launch(_order(arguments, sweep, workers)._replace(say=screen.say, tick=screen.renew))
        failed = sum(row.state == "failed" for row in study.rows())
        if code == OK and failed and not study.open():
            raise RunError(f"{failed} trials failed. trial.json in their folders says why; --retry runs them again.")
        return code
    finally:
        study.close()


def slice_of(options: Any, environment: Mapping[str, str] = os.environ) -> Slice | None:
    """The slice of which this process is one, as flags, the environment or a launcher say; None where it works alone.

    Raises:
      UserError: a launcher started it as one of several, and left no name that all of them know.
    """
    if options.distributed == "off":
        return None
    place, launcher = place_of(options, environment), launcher_of(environment)
    if place is not None:
        flags = (f"--coordinator={place.coordinator}", f"--processes={place.processes}", f"--process={place.process}")
        return Slice(place.coordinator, place.process, flags) if place.processes > 1 else None
    if launcher == "SLURM":
        return Slice(f"slurm {environment['SLURM_JOB_ID']}", int(environment["SLURM_PROCID"]), ())
    if launcher is not None:
        raise UserError(
            f"This process is one of several of {launcher}. To make them one worker, give each --coordinator=HOST:PORT "
            "--processes=N --process=I; to make each a worker of its own, --distributed=off."
        )
    return None


def _planned(arguments: Arguments, member: Slice | None):
    """(sweep, what its trials have in common, the facts of study.json)."""
    from tljax.sweeps.trials import Plan, command_line

    options, base = arguments.options, deepcopy(arguments.config)
    sweep, overrides = read_sweep(load_sweep(Path(options.config)), base), dict(arguments.overrides)
    own, mode = _main(base)
    if sweep.metric not in (None, own):  # the best checkpoint of a run is the one that is compared
        overrides["train.metric"] = sweep.metric
        set_value(base, "train.metric", sweep.metric)
    about = {
        "name": options.study.resolve().name,
        "config": options.config,
        "overrides": overrides,
        "base": base,
        "metric": sweep.metric or own,
        "mode": sweep.mode or mode,
    }
    if None in (about["metric"], about["mode"]):
        raise UserError("The task does not say by which metric it is compared: name `metric` and `mode` in sweep().")
    more = [f"--data_dir={arguments.data_dir}"] if arguments.data_dir else []
    more += ["--distributed=off"] if options.distributed == "off" else []
    more += member.flags if member is not None else []
    return sweep, Plan(options.study, options.config, base, overrides, more, command_line()), about


def _main(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(metric, "max" or "min") by which a run of the config chooses, as far as that is known without the task."""
    main = MAIN.get((config.get("task") or {}).get("name", "classification"), (None, None))
    return chosen_by(main, (config.get("train") or {}).get("metric"))


def _work(plan, study, screen, member: Slice | None, grace: int) -> int:
    """Works here, in this process; returns the exit code."""
    from tljax.sweeps import slices
    from tljax.sweeps.worker import Stop, Worker, work

    with Stop().heard() as stop:
        worker = Worker(study, plan, stop, screen.say, screen.renew, beat=grace / 6)
        if member is None:
            work(worker)
        else:
            leader = slices.Leader(slices.folder_of(plan.study, member.name), stop)

            def tick() -> None:
                leader.beat()
                screen.renew()

            try:
                work(worker._replace(tick=tick, announce=leader.announce, together=False))
            finally:
                leader.end()
    return OK if stop.signal is None else 128 + stop.signal


def _follow(plan, member: Slice) -> int:
    """Runs what process 0 of the slice says; returns the exit code."""
    from tljax.sweeps import slices
    from tljax.sweeps.worker import Stop

    with Stop().heard() as stop:
        slices.follow(slices.folder_of(plan.study, member.name), member.process, stop)
    return OK if stop.signal is None else 128 + stop.signal


def _order(arguments: Arguments, sweep: Sweep, workers: int):
    """What a launcher starts: this command, with one worker, so many times."""
    from tljax.sweeps.launchers import Order
    from tljax.sweeps.trials import command_line

    options = arguments.options
    given = {name: getattr(options, name) for name in ("config", "study", "storage", "data_dir", "grace")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    flags += ["--distributed=off"] if options.distributed == "off" else []
    flags += [f"--config.{key}={value!r}" for key, value in arguments.overrides.items()]
    trials = [
        f"trial {number}: " + ", ".join(f"{axis}={text_of(label)}" for axis, label in point.items())
        for number, point in enumerate(points(sweep))
    ]
    return Order(options.study, [*command_line(), "sweep", *flags], workers, trials, options.sbatch)
