"""Real processes that train, die and are started again; and what is left of them, to be compared."""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tests.chaos.faults import EXITS, Fault, arm, away
from tests.chaos.scenarios import SCENARIOS, options
from tljax.reports.run import write_run_report

TIMED = ("seconds", "steps_per_second")
PRELOADED = ("tests.chaos.harness", "tljax.cli.train", "tljax.assembly.training", "tljax.assembly.caching")
PRELOADED += ("tljax.reports.run", "transformers", "tljax.data.text", "tljax.data.images", "tljax.strategies.compose")


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
      scenario: its name.
      faults: of successive starts.
      died: whether each of these processes ended there, with the exit code that it should have.
      lost: what differs from the undisturbed run; empty where nothing does.
    """

    scenario: str
    faults: tuple[Fault, ...]
    died: bool
    lost: tuple[str, ...]

    @property
    def fine(self) -> bool:
        return self.died and not self.lost


class Harness:
    """Starts runs from a server that has imported everything once. A class because it owns that server.

    Args:
      folder: of `scenarios.prepare`; runs and caches stand below it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        self._undisturbed: dict[str, dict[str, Any]] = {}

    def start(self, scenario: str, workdir: Path, fault: Fault | None) -> int:
        """One process, from start to end; its exit code, −9 where it was killed."""
        cache = workdir if fault and fault.point in ("tracing", "keeping a compiled program") else self.folder
        arguments = (options(SCENARIOS[scenario], self.folder, workdir), fault, str(cache / "xla"), str(workdir))
        process = self._context.Process(target=_main, args=arguments)
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{scenario}, {fault}: still running after 300 s")
        return process.exitcode

    def undisturbed(self, scenario: str) -> dict[str, Any]:
        """What is left of the scenario's run without faults."""
        if scenario not in self._undisturbed:
            workdir = self.folder / "runs" / _name(scenario, "undisturbed")
            code = self.start(scenario, workdir, None)
            if code:
                raise RuntimeError(f"{scenario} without faults exits with {code}:\n{(_log(workdir)).read_text()}")
            self._undisturbed[scenario] = remains(workdir)
        return self._undisturbed[scenario]

    def case(self, scenario: str, faults: Sequence[Fault], number: int | str) -> Outcome:
        """Starts the run with each of the faults, then without, and compares."""
        expected = self.undisturbed(scenario)
        workdir = self.folder / "runs" / _name(scenario, str(number))
        died = []
        for fault in faults:
            died.append(self.start(scenario, workdir, fault) == EXITS[fault.what])
            if away(workdir).exists():
                shutil.rmtree(workdir, ignore_errors=True)
                away(workdir).rename(workdir)
        code = self.start(scenario, workdir, None)
        if code:
            lost = (f"started again it exits with {code}: {_log(workdir).read_text()[-2000:]}",)
        else:
            found = remains(workdir)
            lost = tuple(key for key in expected if found[key] != expected[key])
        # A moment may come after the end of a run that is done sooner than the undisturbed one was.
        return Outcome(scenario, tuple(faults), all(d or not f.point for d, f in zip(died, faults, strict=True)), lost)


def remains(workdir: Path) -> dict[str, Any]:
    """What a run leaves, without clock times: records, every checkpoint leaf by leaf, the report."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    saved = {}
    for path in sorted((workdir / "checkpoints").iterdir()):
        record = json.loads((path / "record" / "metadata").read_text())
        meta = {key: value for key, value in record["meta"].items() if key not in (*TIMED, "offset")}
        saved[path.name] = (record["leaves"], record["best"], meta["best"], meta["digests"])
    leftovers = sorted(path.name for path in workdir.iterdir() if path.name not in ("cache", "xla", "tensorboard"))
    return {
        "records": records,
        "checkpoints": saved,
        "report": _report(workdir, records),
        "files": leftovers,
    }


def _report(workdir: Path, records: list[dict[str, Any]]) -> str:
    """The report that the records without clock times give; the run's own must be there, whole."""
    if not (workdir / "report.html").read_text().rstrip().endswith("</html>"):
        return "the report is cut off"
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / "run"
        copy.mkdir()
        for name in ("config.json", "inspect.json"):
            shutil.copy(workdir / name, copy / name)
        (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return write_run_report(copy).read_text().replace(str(workdir), "")


def _name(scenario: str, what: str) -> str:
    return f"{''.join(c if c.isalnum() else '_' for c in scenario)}-{what}"


def _log(workdir: Path) -> Path:
    return workdir.with_suffix(".log")


def _main(argv: list[str], fault: Fault | None, cache: str, workdir: str) -> None:
    """The whole life of a process: output into a file, the fault armed, the command run."""
    log = os.open(_log(Path(workdir)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The server has imported jax, which reads the environment then.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if fault is not None:
        arm(fault, Path(workdir))
    from tljax.cli.main import main

    sys.exit(main(argv))
