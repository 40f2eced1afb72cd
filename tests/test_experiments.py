"""The studies: what a README shows is what the committed records say."""

import importlib
import json
import shutil

import pytest

from experiments import check, study


@pytest.mark.parametrize("folder", check.folders(), ids=lambda folder: folder.name)
def test_a_study_keeps_what_its_readme_promises(folder):
    assert check.faults(folder) == []


def test_a_readme_that_does_not_follow_from_its_records_is_found(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "wnut_ner"
    shutil.copytree(study.HERE / "wnut_ner", folder)
    monkeypatch.setattr(study, "HERE", tmp_path)
    assert check.main([]) == 0
    readme = folder / "README.md"
    text = readme.read_text()
    table = study.table_in(readme)
    readme.write_text(text.replace(table, table.replace("41.2", "43.2")).replace("Cost:", "It took"))
    assert check.main(["wnut_ner"]) == 1
    said = capsys.readouterr().out
    assert "wnut_ner: the README does not tell its cost." in said and "is not that of records.json" in said
    assert "experiments.wnut_ner.run --table" in said
    (folder / "records.json").unlink()
    assert check.faults(folder)[-1] == "it has no records.json."
    assert check.main(["nothing"]) == 1


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


def test_what_has_a_record_is_not_run_again_unless_something_starts_from_it(tmp_path, monkeypatch):
    cases = (study.Case("first", export=True), study.Case("second", {"x": "{after}/export"}, after="first"))
    made, ran = study.Study("made", "config.py", cases, (), seeds=2), []
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "launch", lambda options: ran.append((options[0], options[-1])) or 0)
    record = lambda case, seed, folder: {"case": case.name, "seed": seed}  # noqa: E731
    monkeypatch.setattr(study, "record_of", record)
    for case, seed in ((cases[0], 0), (cases[0], 1), (cases[1], 1)):
        study.keep(made, record(case, seed, None))
    assert study.run(made, tmp_path / "runs", 2, None, missing=True) == 0
    first = study.folder_of(tmp_path / "runs", "first", 0)
    assert ran == [
        ("train", "--config.seed=0"),
        ("export", f"--workdir={first}"),
        ("train", f"--config.x={str(first / 'export')!r}"),
    ], "of the first case only the run that the second still needs"
    ran.clear()
    assert study.run(made, tmp_path / "runs", 2, None, missing=True) == 0 and not ran
    assert len(study.read(made)) == 4


def test_a_run_apart_leaves_its_cost(tmp_path):
    for _ in range(2):
        assert study.launch_apart(["list"], tmp_path) == 0
        cost = json.loads((tmp_path / "cost.json").read_text())
        assert 0 < cost["seconds"] < 300 and 1e7 < cost["peak_memory"] < 1e11
        (tmp_path / "cost.json").write_text(json.dumps({**cost, "seconds": 299.0}))
    assert json.loads((tmp_path / "cost.json").read_text())["seconds"] == 299.0, "what was measured first stays"
    assert study.launch_apart(["train", "--config=nowhere.py", f"--workdir={tmp_path}"], tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_the_rankings_of_the_adviser_are_made_from_the_records():
    run = importlib.import_module("experiments.select.run")
    found = run.ranking(study.read(run.STUDY), run.selections())
    assert "| Banking77, 10 a class |" in found and run.ranking_in(run.FOLDER / "README.md") == found
