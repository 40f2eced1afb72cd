"""`report`: makes a run's report.html anew from its records."""

from tljax.base.errors import UserError
from tljax.cli.common import need_workdir
from tljax.cli.main import Arguments
from tljax.reports.run import write_run_report


def run(arguments: Arguments) -> int:
    """Writes `report.html` in `--workdir`; loads no jax."""
    workdir = need_workdir(arguments)
    if not (workdir / "metrics.jsonl").exists():
        raise UserError(f"{workdir} is not a run folder: it has no metrics.jsonl.")
    print(write_run_report(workdir))
    return 0
