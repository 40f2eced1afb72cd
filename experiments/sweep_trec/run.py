"""Three strategies at two learning rates, three seeds each, on TREC: the records of a study that `sweep` has finished.

    python launch.py sweep --config=configs/sweep_trec.py --study=runs/sweep_trec --workers=2
    python -m experiments.sweep_trec.run runs/sweep_trec
"""

import json
import sys
from pathlib import Path

from experiments.study import HERE, Case, Column, Study, keep, measured, read, record_of, write_table
from tljax.cli.config import load_sweep

CONFIG = "configs/sweep_trec.py"
STUDY = Study(
    name="sweep_trec",
    config=CONFIG,
    cases=tuple(Case(each["name"]) for each in load_sweep(HERE.parent / CONFIG)["joint"]),
    columns=tuple(Column(f"{split} accuracy, %", split, "accuracy") for split in ("validation", "test")),
)


def collect(folder: Path) -> None:
    """Keeps the records of the trials in the study's folder that are complete."""
    for path in sorted(folder.glob("trials/*/trial.json")):
        trial = json.loads(path.read_text(encoding="utf8"))
        if trial["state"] == "complete":
            keep(STUDY, record_of(Case(trial["names"]["joint"]), trial["values"]["seed"], path.parent))


def main(arguments: list[str]) -> int:
    for folder in arguments:
        collect(Path(folder))
    table = measured(STUDY, read(STUDY))
    write_table(HERE / STUDY.name / "README.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
