"""`report`: a run's page made anew, or a page on many runs: which is best, at which cost, and is it real?"""

from pathlib import Path

from tljax.base.errors import UserError
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Writes `report.html` in `--workdir`, or that of the named folders into `--output`; loads no jax."""
    options = arguments.options
    if not options.folders and arguments.workdir is not None:
        from tljax.reports.run import write_run_report

        workdir = arguments.workdir
        if not (workdir / "metrics.jsonl").exists():
            raise UserError(f"{workdir} is not a run folder: it has no metrics.jsonl.")
        print(write_run_report(workdir))
        return 0
    from tljax.reports.answer import answer
    from tljax.reports.gather import gather
    from tljax.reports.overview import headline, write_overview

    gathered = gather(options.folders)
    by = [name for name in options.by.split(",") if name]
    found = answer(gathered, metric=options.metric, select=options.select, by=by)
    place = Path(options.output) if options.output else next(iter(gathered.studies), Path("runs/report"))
    page = write_overview(place, found, gathered)
    print(headline(found))
    print(page)
    return 0
