"""Six sets of sentences, each alone and all together, by five ways to weigh them; and what each teaches for the others.

`python -m experiments.multitask_sentences.run`
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.multitask_sentences import SIZES, get_config
from experiments.study import Case, Column, Study, folder_of, keep, main, record_of
from tljax.assembly.reading import share_out
from tljax.methods.multitask import mixing

TITLES = {"mr": "MR", "subj": "SUBJ", "cr": "CR", "mpqa": "MPQA", "trec": "TREC", "sst2": "SST-2"}
TOGETHER = {
    "together, equal weights": {},
    "together, every example weighs the same": {"weighting": "examples"},
    "together, mixed by temperature 4": {"weighting": "examples", "temperature": 4.0},
    "together, weights by uncertainty": {"weighting": "uncertainty", "variance_rate": 10.0},
    "together, PCGrad": {"gradients": "pcgrad"},
}
UNTRAINED = "no training, then probes"


def alone(name: str) -> dict[str, Any]:
    """The values of a run of one task: its batches and steps are those that it has in the joint run."""
    config = get_config().to_dict()
    size, epochs = config["train"]["batch_size"], config["train"]["epochs"]
    return {
        "task.tasks": {name: config["task"]["tasks"][name]},
        "data": {entry: options for entry, options in config["data"].items() if options["task"] == name},
        "train.batch_size": share_out(mixing(SIZES), size)[name],
        "train.steps": -(-epochs * sum(SIZES.values()) // size),
    }


def probe(name: str, source: str | None) -> dict[str, Any]:
    """The values of a linear probe of the set `name` on the encoder `source`, or on the checkpoint's own."""
    data = get_config().to_dict()["data"]
    parts = {"train": data[f"train_{name}"], "test": data[f"test_{name}"]}
    return {
        "task": {"name": "classification", "pool": "mean"},
        "method": {"name": "supervised"},
        "data": {entry: {k: v for k, v in options.items() if k != "task"} for entry, options in parts.items()},
        **({"model.source": source, "model.sha256": None} if source else {}),
    }


STUDY = Study(
    name="multitask_sentences",
    config="configs/multitask_sentences.py",
    cases=(
        *(Case(f"{TITLES[name]} alone", alone(name), export=True) for name in SIZES),
        *(Case(name, {"method": {"name": "multitask", **options}}) for name, options in TOGETHER.items()),
        Case(UNTRAINED),
        *(Case(f"{TITLES[name]} alone, then probes") for name in SIZES),
    ),
    columns=(
        *(Column(f"{TITLES[name]}, %", f"test_{name}", "accuracy") for name in SIZES),
        Column("pairs of gradients in conflict, %", "training", "conflicts"),
    ),
)


def transfer(workdir: Path, seeds: int) -> int:
    """The rows of the transfer matrix: probes of all sets on what was trained on one; returns the exit code."""
    from tljax.cli.main import main as launch

    for learnt in (None, *SIZES):
        row = UNTRAINED if learnt is None else f"{TITLES[learnt]} alone, then probes"
        for seed in range(seeds):
            source = None if learnt is None else str(folder_of(workdir, f"{TITLES[learnt]} alone", seed) / "export")
            found = {}
            for name in SIZES:
                folder = folder_of(workdir, f"{row} of {name}", seed)
                if not (folder / "checkpoints").is_dir():
                    given = {"seed": seed, **probe(name, source)}
                    values = [f"--config.{key}={value!r}" for key, value in given.items()]
                    if code := launch(["probe", f"--config={STUDY.config}", f"--workdir={folder}", *values]):
                        return code
                found[name] = record_of(Case(row), seed, folder)
            keep(STUDY, together(row, seed, found))
    return 0


def together(row: str, seed: int, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a row from those of its probes."""
    return {
        "case": row,
        "seed": seed,
        "metrics": {f"test_{name}": record["metrics"]["test"] for name, record in records.items()},
        "steps": 0,
        "seconds": sum(record["seconds"] for record in records.values()),
        "live_parameters": next(iter(records.values()))["live_parameters"],
    }


def run(argv: Sequence[str] | None = None) -> int:
    """The runs of the study, then the transfer matrix, then the table with both."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seeds", type=int, default=STUDY.seeds)
    parser.add_argument("--workdir", type=Path, default=Path("runs") / STUDY.name)
    parser.add_argument("--only", action="append")
    parser.add_argument("--table", action="store_true")
    options, _ = parser.parse_known_args(argv)
    trained = STUDY._replace(cases=[case for case in STUDY.cases if not case.name.endswith("then probes")])
    code = main(trained, argv)
    if code or options.table or options.only:
        return code
    return transfer(options.workdir, options.seeds) or main(STUDY, ["--table"])


if __name__ == "__main__":
    sys.exit(run())
