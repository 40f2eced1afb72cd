"""The studies: what a README shows is what the committed records say."""

import importlib
from pathlib import Path

import pytest

from experiments import study

FOLDERS = sorted(path.parent for path in Path(study.__file__).parent.glob("*/records.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_table_is_made_from_the_records(folder):
    found = importlib.import_module(f"experiments.{folder.name}.run").STUDY
    records = study.read(found)
    assert records and study.table_in(folder / "README.md") == study.measured(found, records)


def test_a_table_has_means_and_deviations(tmp_path):
    made = study.Study("x", "", (), (study.Column("F1", "test", "f1"), study.Column("BLEU", "test", "bleu", False, 2)))
    records = [
        {"case": "a", "seed": s, "metrics": {"test": {"f1": f1}}, "steps": 5, "seconds": 9.6, "live_parameters": 1200}
        for s, f1 in enumerate((0.5, 0.6, 0.7))
    ]
    table = study.measured(made, records)
    assert table.splitlines()[2] == "| a | 60.0 ± 10.0 | – | 3 | 1,200 | 5 | 10 |"
    readme = tmp_path / "README.md"
    readme.write_text(f"# X\n{study.BEGIN}\n{study.END}\nend\n")
    study.write_table(readme, table)
    study.write_table(readme, table)
    assert study.table_in(readme) == table and readme.read_text().endswith("\nend\n")
