"""Workers whose trials are run by `stand_in.py`: `python tests/sweeps/workers.py FOLDER SWEEP [URL]`, SWEEP as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tljax.sweeps.axes import read_sweep
from tljax.sweeps.study import Study, open_study
from tljax.sweeps.trials import Plan
from tljax.sweeps.worker import Stop, Worker, work

ROOT = Path(__file__).parents[2]
CONFIG = {
    "seed": 0,
    "strategy": {"fine_tune": {}},
    "optim": {"learning_rate": 0.5},
    "train": {"fail": False, "seconds": 0.0, "cache": "off"},
    "data": {"train": {"source": "a"}, "validation": {"source": "a"}},
}
GRACE = 6


def opened(folder: Path, given: dict, url: str | None = None, grace: int = GRACE) -> Study:
    sweep = read_sweep(given, CONFIG)
    about = {"name": "study", "config": "config.py", "overrides": {}, "base": CONFIG}
    about |= {"metric": "accuracy", "mode": "max"}
    return open_study(folder, sweep, about, storage=url, grace=grace)


def worker_of(study: Study, stop: Stop, *, options: Sequence[str] = (), **more) -> Worker:
    program = [sys.executable, str(Path(__file__).parent / "stand_in.py")]
    plan = Plan(study.folder, "config.py", CONFIG, {}, options, program)
    return Worker(study, plan, stop, beat=GRACE / 6, **more)


def begin(folder: Path, given: dict, url: str | None = None) -> subprocess.Popen:
    """A worker in a process of its own."""
    arguments = [str(folder), json.dumps(given), *([url] if url else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, stdout=log, stderr=log)


def main(arguments: list[str]) -> None:
    folder, given, *url = arguments
    study = opened(Path(folder), json.loads(given), *url)
    with Stop().heard() as stop:
        work(worker_of(study, stop))
    study.close()


if __name__ == "__main__":
    main(sys.argv[1:])
