"""`probe`: logistic regression to convergence on frozen features."""

import statistics
import time

from tljax.base.errors import UserError
from tljax.cli.common import build_experiment, need_split
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Embeds the training and test entries once, fits `config.probe`, and prints the mean over its repeats."""
    started = time.monotonic()
    experiment = build_experiment(arguments)
    from tljax.build.running import run_probe
    from tljax.reports.run import write_run_report
    from tljax.train.display import Display
    from tljax.train.job import claim
    from tljax.train.records import Records

    if "train" not in experiment.sources:
        raise UserError("config.data has no `train`, so there is nothing to fit the probe on.")
    split = need_split(arguments.options.split, [name for name in experiment.sources if name != "train"])
    repeats = run_probe(experiment, split)
    numbers = {name: statistics.fmean(r["metrics"][name] for r in repeats) for name in repeats[0]["metrics"]}
    display = Display()
    if arguments.workdir is not None:
        claim(arguments.workdir, experiment.config, {})
        records = Records(arguments.workdir)
        records.truncate(0)
        for i, repeat in enumerate(repeats):
            records.write("probe", step=i, split=split, metrics=repeat["metrics"], fit=repeat["fit"])
        records.write("evaluate", step=0, split=split, metrics=numbers, tables=repeats[-1]["tables"])
        records.write("end", step=0, seconds=round(time.monotonic() - started, 3))
        records.close()
        display.say(f"report: {write_run_report(arguments.workdir)}")
    if len(repeats) > 1:
        main = experiment.task.main[0]
        spread = statistics.stdev(r["metrics"][main] for r in repeats)
        display.say(f"{len(repeats)} draws; {main} deviates by {spread:.4f}")
    display.metrics("logistic regression on frozen features", {split: numbers})
    return 0
