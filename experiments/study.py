"""What the studies share: cases run over seeds by the command line, their records committed, the README's table made.

A study is a folder with a `run.py` that calls `main(STUDY)`, a README with a place for the table, and `records.json`,
which a run writes. Runs that are finished are not run again; runs that were interrupted continue.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HERE = Path(__file__).parent


class Case(NamedTuple):
    """One row of the table.

    Attributes:
      name: as it stands in the table.
      values: dotted key → value, set over the config; `{seed}` in a value is the seed, `{folder}` the run folder.
      verb: of `launch.py`.
      config: another config than the study's.
      seeds: another number of seeds than the study's.
      export: write the run's export too.
      compute: () → a record, for a case that is no run of `launch.py` (a library's method on the same data).
      after: the name of a case whose run with the same seed comes before; `{after}` in a value is its folder.
    """

    name: str
    values: Mapping[str, Any] = {}
    verb: str = "train"
    config: str | None = None
    seeds: int | None = None
    export: bool = False
    compute: Callable[[], dict[str, Any]] | None = None
    after: str | None = None


class Column(NamedTuple):
    """A column of the table: a metric of a split, in per cent where `percent`."""

    title: str
    split: str
    metric: str
    percent: bool = True
    digits: int = 1


class Study(NamedTuple):
    """A study of cases.

    Attributes:
      name: its folder under experiments/.
      config: of its cases.
      cases: the rows of its table.
      columns: of its table.
      seeds: of each case.
      apart: whether each run is a process of its own, of which the processor's seconds and the peak memory are kept.
        Without, `seconds` are those of the training.
    """

    name: str
    config: str
    cases: Sequence[Case]
    columns: Sequence[Column]
    seeds: int = 3
    apart: bool = False


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Runs what is not finished, writes records.json and the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=f"The study experiments/{study.name}.")
    parser.add_argument("--seeds", type=int, default=study.seeds)
    parser.add_argument("--workdir", type=Path, default=Path("runs") / study.name)
    parser.add_argument("--only", action="append", help="run this case only; can be given several times")
    parser.add_argument("--missing", action="store_true", help="leave out what records.json has")
    parser.add_argument("--table", action="store_true", help="only write the table of the committed records")
    options = parser.parse_args(argv)
    if not options.table:
        code = run(study, options.workdir, options.seeds, options.only, missing=options.missing)
        if code:
            return code
    table = measured(study, read(study))
    write_table(HERE / study.name / "README.md", table)
    print(table)
    return 0


def run(study: Study, workdir: Path, seeds: int, only: Sequence[str] | None, *, missing: bool = False) -> int:
    """Runs the cases; the records of each finished run replace the ones before.

    With `missing`, what has a record is not run again, unless a case without one starts from it and its folder is gone.
    """
    there = {(record["case"], record["seed"]) for record in read(study)} if missing else set()
    used = {
        (case.after, seed)
        for case in study.cases
        for seed in range(seeds if case.seeds is None else case.seeds)
        if case.after and (case.name, seed) not in there
    }
    for case in study.cases:
        if only and case.name not in only:
            continue
        if case.compute is not None:
            if (case.name, 0) in there:
                continue
            keep(study, {"case": case.name, "seed": 0, **case.compute()})
            continue
        for seed in range(seeds if case.seeds is None else case.seeds):
            folder = folder_of(workdir, case.name, seed)
            if (case.name, seed) in there and ((case.name, seed) not in used or (folder / "export").is_dir()):
                continue
            if code := run_one(study, case, seed, workdir):
                return code
            keep(study, record_of(case, seed, folder))
    return 0


def run_one(study: Study, case: Case, seed: int, workdir: Path) -> int:
    """Runs a case with a seed, and exports it where that is asked for; returns the exit code."""
    folder = folder_of(workdir, case.name, seed)
    before = folder_of(workdir, case.after, seed) if case.after else ""
    names = {"{after}": str(before), "{seed}": str(seed), "{folder}": str(folder)}
    values = {key: _filled(value, names) for key, value in case.values.items()}
    options = [
        case.verb,
        f"--config={case.config or study.config}",
        f"--workdir={folder}",
        f"--config.seed={seed}",
        *(f"--config.{key}={value!r}" for key, value in values.items()),
    ]
    code = launch_apart(options, folder) if study.apart else launch(options)
    return code or (launch(["export", f"--workdir={folder}"]) if case.export else 0)


def launch(options: Sequence[str]) -> int:
    """Runs `launch.py` with these options in this process; returns the exit code."""
    from tljax.cli.main import main

    return main(list(options))


def launch_apart(options: Sequence[str], folder: Path) -> int:
    """Runs `launch.py` in a process of its own; returns the exit code.

    What it cost, {"seconds": of processors, "peak_memory": bytes}, goes to `cost.json` in the run folder: on one core
    the seconds are those that pass where nothing else is at work. A run that is finished keeps the cost that it had; of
    one that was killed before, only the last part counts.
    """
    process = subprocess.Popen([sys.executable, "launch.py", *options], cwd=HERE.parent)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    path = folder / "cost.json"
    if process.returncode == 0 and not path.is_file():
        # Linux counts in kibibytes.
        cost = {"seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_memory": usage.ru_maxrss * 1024}
        path.write_text(json.dumps(cost) + "\n", encoding="utf8")
    return process.returncode


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(each, names) for key, each in value.items()}
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(name, text)
    return value


def folder_of(workdir: Path, name: str, seed: int) -> Path:
    """The run folder of a case and a seed."""
    return workdir / f"{''.join(c if c.isalnum() else '_' for c in name)}_seed{seed}"


def record_of(case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """What is kept of a run: numbers of each split at the chosen checkpoint, steps, seconds, parameters ever live.

    Under `training` stand the method's own numbers of the last step that was logged.
    """
    from tljax.reports.records import read_run

    found = read_run(folder)
    ends = found.of("end")
    metrics = {split: entry["metrics"] for split, entry in found.last_evaluations().items()}
    logged = found.of("train")
    if logged and logged[-1]["metrics"]:
        metrics["training"] = logged[-1]["metrics"]
    cost = folder / "cost.json"
    return {
        "case": case.name,
        "seed": seed,
        "metrics": metrics,
        "steps": ends[-1]["step"] if ends else 0,
        "seconds": round(ends[-1].get("seconds", 0.0), 1) if ends else 0.0,
        "live_parameters": found.inspect.get("total", {}).get("live_at_end", 0),
        **(json.loads(cost.read_text(encoding="utf8")) if cost.is_file() else {}),
    }


def read(study: Study) -> list[dict[str, Any]]:
    """The committed records."""
    path = HERE / study.name / "records.json"
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else []


def keep(study: Study, record: Mapping[str, Any]) -> None:
    """Puts a record into records.json, in place of one of the same case and seed."""
    others = [r for r in read(study) if (r["case"], r["seed"]) != (record["case"], record["seed"])]
    order = {case.name: i for i, case in enumerate(study.cases)}
    records = sorted([*others, record], key=lambda r: (order.get(r["case"], len(order)), r["seed"]))
    text = json.dumps(records, indent=1) + "\n"
    (HERE / study.name / "records.json").write_text(text, encoding="utf8")


def measured(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown: mean ± standard deviation over the seeds, with their number."""
    titles = ["", *(column.title for column in study.columns), "seeds", "live parameters", "steps", "seconds a run"]
    titles += ["peak memory, GB"] if study.apart else []
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name in dict.fromkeys(record["case"] for record in records):
        rows = [record for record in records if record["case"] == name]
        cells = [name, *(_cell(rows, column) for column in study.columns), str(len(rows))]
        cells += [f"{rows[0]['live_parameters']:,}" if rows[0]["live_parameters"] else "–", f"{rows[0]['steps']:,}"]
        cells.append(f"{statistics.median(row['seconds'] for row in rows):.0f}")
        cells += [f"{statistics.median(row['peak_memory'] for row in rows) / 1e9:.2f}"] if study.apart else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Mapping[str, Any]], column: Column) -> str:
    found = [row["metrics"].get(column.split, {}).get(column.metric) for row in rows]
    values = [value * (100 if column.percent else 1) for value in found if value is not None]
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{column.digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{column.digits}f}" if len(values) > 1 else mean


def write_table(path: Path, table: str) -> None:
    """Puts the table between the marks in a README."""
    text = path.read_text(encoding="utf8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf8")


def table_in(path: Path) -> str:
    """The table that a README holds."""
    return path.read_text(encoding="utf8").split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    sys.exit("This module is shared by the studies; run one: python -m experiments.NAME.run")
