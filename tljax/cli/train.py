"""`train`: trains an experiment, or continues it; ends with a table and a report."""

import signal

from tljax.base.processes import agreed
from tljax.cli.common import build_experiment, need_workdir
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Trains in `--workdir`; the same command continues a run that was stopped."""
    workdir = need_workdir(arguments)
    from tljax.train.continuing import check_allowed

    allow = check_allowed(name for name in arguments.options.allow.split(",") if name)
    experiment = build_experiment(arguments)
    from tljax.assembly.caching import with_cache
    from tljax.assembly.training import make_job
    from tljax.reports.run import write_run_report
    from tljax.train.display import Display
    from tljax.train.job import replay, train

    display = Display()
    for note in experiment.notes:
        display.say(note)
    job = make_job(with_cache(experiment, say=display.say))
    if arguments.options.debug_nans:
        display.say(replay(job, workdir, display=display))
        return 0
    result = train(job, workdir, display=display, allow=allow)
    if result.signal is not None:
        display.say(f"{result.reason}; saved at step {result.step}. The same command continues.")
        return 128 + signal.Signals(result.signal)
    report = agreed(lambda: str(write_run_report(workdir)))
    if result.reason:
        display.say(f"stopped at step {result.step}: {result.reason}")
    display.metrics(f"{workdir}", result.metrics)
    display.say(f"report: {report}")
    return 0
