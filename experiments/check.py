"""Whether each study keeps what its README promises: its table follows from its records, and the rest is told.

    python -m experiments.check [NAME …]

Exits with 1 and names each fault.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import study

TOLD = {
    "its question": r"^\*\*Question\.\*\*",
    "its papers, or where figures are published": r"\*\*(Papers?|Published|Model and papers)\b",
    "its command": r"python -m experiments\.{name}\.run",
    "its cost": r"\bCost[.:]",
}
"""What a README tells → how that looks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the named studies, or all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of studies; default: all")
    names = parser.parse_args(argv).names or [folder.name for folder in folders()]
    found = [f"{name}: {fault}" for name in names for fault in faults(study.HERE / name)]
    print("\n".join(found) or f"{len(names)} studies keep what they promise.")
    return 1 if found else 0


def folders() -> list[Path]:
    """The folders of the studies: those with a README."""
    return sorted(path.parent for path in study.HERE.glob("*/README.md"))


def faults(folder: Path) -> list[str]:
    """What is wrong with a study, in sentences."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ["it has no README.md."]
    text = readme.read_text(encoding="utf8")
    found = [
        f"the README does not tell {what}."
        for what, looks in TOLD.items()
        if not re.search(looks.replace("{name}", re.escape(folder.name)), text, re.MULTILINE)
    ]
    if not (folder / "records.json").is_file():
        return [*found, "it has no records.json."] if study.BEGIN in text else found
    made = importlib.import_module(f"experiments.{folder.name}.run").STUDY
    records = study.read(made)
    if not records:
        return [*found, "records.json is empty."]
    if study.BEGIN not in text or study.END not in text:
        return [*found, f"the README has no place for the table ({study.BEGIN} … {study.END})."]
    if study.table_in(readme) != study.measured(made, records):
        again = f"python -m experiments.{folder.name}.run --table"
        found.append(f"the table in the README is not that of records.json. Make it anew: {again}")
    return found


if __name__ == "__main__":
    sys.exit(main())
