"""Sentiment across Amazon's departments: twelve pairs of domains, four methods.

`python -m experiments.amazon_sentiment.run`

A row of the table is a method and not a pair, so a record holds the twelve pairs of a seed.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.study import HERE, Case, Column, Study, folder_of, keep, measured, read, record_of, write_table

DOMAINS = ("books", "dvd", "electronics", "kitchen")
PAIRS = tuple(itertools.permutations(DOMAINS, 2))
METHODS = {
    "source only": {"name": "supervised"},
    "CDAN": {"name": "cdan", "ramp": 100},
    "MMD": {"name": "dan"},
    "instance weighting": {"name": "importance"},
}
"""Row of the table → the section `method`; `ramp` is about the length of a run in steps."""

STUDY = Study(
    name="amazon_sentiment",
    config="configs/amazon_sentiment.py",
    cases=tuple(map(Case, METHODS)),
    columns=(
        Column("mean", "mean", "accuracy"),
        *(Column(pair, pair, "accuracy") for pair in (f"{source} → {target}" for source, target in PAIRS)),
        Column("mean within the source", "within", "accuracy"),
    ),
    seeds=3,
)


def values(method: str, source: str, target: str, seed: int) -> dict[str, Any]:
    """What a pair and a method set over the config. The target's training part is read by the methods that adapt."""
    section = METHODS[method]
    entries = {"train.source": source, "source.source": source, "test.source": target}
    found = {f"data.{key}": f"tljax:amazon_reviews:{domain}" for key, domain in entries.items()}
    if section["name"] != "supervised":
        found["data.target"] = {"source": f"tljax:amazon_reviews:{target}", "split": "train"}
    return {"seed": seed, "method": section, **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not finished, writes records.json and the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=STUDY.seeds)
    parser.add_argument("--workdir", type=Path, default=Path("runs") / STUDY.name)
    parser.add_argument("--only", action="append", help="run this method only; can be given several times")
    parser.add_argument("--table", action="store_true", help="only write the table of the committed records")
    options = parser.parse_args(argv)
    for seed in range(0 if options.table else options.seeds):
        for method in options.only or METHODS:
            if code := run(options.workdir, method, seed):
                return code
    table = measured(STUDY, read(STUDY))
    write_table(HERE / STUDY.name / "README.md", table)
    print(table)
    return 0


def run(workdir: Path, method: str, seed: int) -> int:
    """Runs the pairs of a method and a seed, and keeps their record when all are finished; returns the exit code."""
    from tljax.cli.main import main as launch

    found = {}
    for source, target in PAIRS:
        folder = folder_of(workdir, f"{method} {source} {target}", seed)
        given = [f"--config.{key}={value!r}" for key, value in values(method, source, target, seed).items()]
        if code := launch(["train", f"--config={STUDY.config}", f"--workdir={folder}", *given]):
            return code
        found[f"{source} → {target}"] = record_of(Case(method), seed, folder)
    keep(STUDY, together(method, seed, found))
    return 0


def together(method: str, seed: int, pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a method and a seed from those of its pairs; its seconds are those of a run in the middle."""
    accuracies = {name: record["metrics"]["test"]["accuracy"] for name, record in pairs.items()}
    within = [record["metrics"]["source"]["accuracy"] for record in pairs.values()]
    metrics = {**accuracies, "mean": statistics.fmean(accuracies.values()), "within": statistics.fmean(within)}
    first = next(iter(pairs.values()))
    return {
        "case": method,
        "seed": seed,
        "metrics": {name: {"accuracy": value} for name, value in metrics.items()},
        "steps": first["steps"],
        "seconds": statistics.median(record["seconds"] for record in pairs.values()),
        "live_parameters": first["live_parameters"],
    }


if __name__ == "__main__":
    sys.exit(main())
