"""`probe`: linear classifiers on frozen features: logistic regression, ridge, or a grid of trained heads."""

import json
import signal
import statistics
import time
from pathlib import Path

from tljax.base.errors import UserError
from tljax.cli.common import need_config, need_split
from tljax.cli.main import RUN_ERROR, Arguments


def run(arguments: Arguments) -> int:
    """Embeds the entries once, fits `config.probe`, and shows the mean over its draws; with --workdir, keeps the first.

    Of several probes (a path of penalties, a grid of heads) the one that does best on `validation` is measured.

    Whatever strategy the config names, a probe trains the head alone.
    """
    if arguments.options.trials is not None:
        return run_together(arguments)
    started = time.monotonic()
    config = {**need_config(arguments), "strategy": {"linear_probe": {}}}
    from tljax.assembly.experiment import build
    from tljax.assembly.running import run_probe
    from tljax.train.display import Display

    processor = time.process_time()
    experiment = build(config, data_dir=arguments.data_dir)
    if "train" not in experiment.sources:
        raise UserError("config.data has no `train`, so there is nothing to fit the probe on.")
    splits = [name for name in ("validation", "test") if name in experiment.sources]
    splits = [need_split(arguments.options.split, splits)] if arguments.options.split or not splits else splits
    draws = run_probe(experiment, splits)
    metrics = {split: _mean([draw["metrics"][split] for draw in draws]) for split in splits}
    display = Display()
    if arguments.workdir is not None:
        seconds = {"seconds": time.monotonic() - started, "processor_seconds": time.process_time() - processor}
        report = _record(arguments.workdir, experiment, draws, metrics, seconds)
        display.say(f"report: {report}")
    main, last = experiment.task.main[0], splits[-1]
    if len(draws) > 1:
        spread = statistics.stdev(draw["metrics"][last][main] for draw in draws)
        display.say(f"mean of {len(draws)} draws; {main} on {last} deviates by {spread:.4f}")
    if draws[0]["grid"]:
        display.metrics("the grid on validation (first draw)", draws[0]["grid"])
        display.say(f"chosen: {', '.join(dict.fromkeys(draw['name'] for draw in draws))}")
    display.metrics("linear probe on frozen features", metrics)
    return 0


def run_together(arguments: Arguments) -> int:
    """Trains the runs that `--trials` names as one program, each in its folder, as `train` would one by one.

    The file holds [{"config": resolved config, "workdir": folder}, …]; see `tljax.assembly.lanes` for what may differ.
    """
    try:
        trials = json.loads(Path(arguments.options.trials).read_text(encoding="utf8"))
        configs, workdirs = ([trial[name] for trial in trials] for name in ("config", "workdir"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--trials={arguments.options.trials} cannot be read: {error!r}.") from error
    from tljax.assembly.lanes import lanes_of
    from tljax.reports.run import write_run_report
    from tljax.train.display import Display
    from tljax.train.together import train_together

    display = Display()
    lanes = lanes_of(configs, data_dir=arguments.data_dir, say=display.say)
    display.say(f"{len(configs)} heads train together")
    folders = [Path(each) for each in workdirs]
    errors, stopped = train_together(lanes.jobs, folders, *lanes[1:], display=display, finished=write_run_report)
    if stopped is not None:
        display.say("stopped; each run is saved, and `train` continues it by itself.")
        return 128 + signal.Signals(stopped)
    for workdir, error in zip(workdirs, errors, strict=True):
        if error is not None:
            display.say(f"{workdir}: the run stopped. {error}")
    return RUN_ERROR if any(errors) else 0


def _mean(numbers: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(n[name] for n in numbers) for name in numbers[0]}


def _record(workdir: Path, experiment, draws: list[dict], metrics: dict, seconds: dict[str, float]) -> Path:
    """Config, records, weights and report of a probe that took so many `seconds`, as of any run."""
    from tljax.assembly.facts import digests
    from tljax.assembly.training import save_probe, summary
    from tljax.reports.run import write_run_report
    from tljax.train.continuing import claim
    from tljax.train.outcome import recorded

    found, stages = digests(experiment), summary(experiment)
    claim(workdir, experiment.config, found, stages)
    known = {name: round(value, 3) for name, value in seconds.items()}
    known["live_parameters"] = stages["total"]["live_at_end"]
    with recorded(workdir, experiment.config, found, **known) as line:
        _keep(workdir, draws, metrics, line["seconds"])
        save_probe(experiment, draws[0]["weights"], workdir)
        line.update(state="done", metrics=metrics)
    return write_run_report(workdir)


def _keep(workdir: Path, draws: list[dict], metrics: dict, seconds: float) -> None:
    """metrics.jsonl of a probe."""
    from tljax.train.records import Records

    records = Records(workdir)
    records.truncate(0)
    for number, draw in enumerate(draws):
        records.write("probe", step=0, draw=number, name=draw["name"], metrics=draw["metrics"], fit=draw["fit"])
        for name, numbers in draw["grid"].items():
            records.write("probe_grid", step=0, draw=number, name=name, metrics=numbers)
    for split, numbers in metrics.items():
        records.evaluation(0, split, numbers, draws[0]["tables"][split])
    records.write("end", step=0, seconds=seconds)
    records.close()
