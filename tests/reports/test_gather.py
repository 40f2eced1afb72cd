"""Runs from folders: runs, studies, folders of them; each once; and the states in which they ended."""

import json
import shutil

import pytest

from tests.reports.many import STRATEGIES, write_run
from tljax.base.errors import UserError
from tljax.reports.gather import gather


def run(folder, **changes):
    return write_run(folder, **{"seed": 0, "strategy": STRATEGIES["lora"], "rate": 1e-3, "share": 0.9, **changes})


def test_runs_and_studies_are_read_together_and_each_run_once(tmp_path, study):
    one = run(tmp_path / "runs" / "one")
    run(tmp_path / "runs" / "two", seed=1)
    found = gather([study, one, tmp_path / "runs", study / "trials" / "0000"])
    assert len(found.entries) == 20 + 2
    assert found.studies[study]["name"] == "tiny sweep"
    states = [entry.state for entry in found.entries]
    assert {state: states.count(state) for state in set(states)} == {"done": 20, "failed": 1, "pruned": 1}
    failed = next(entry for entry in found.entries if entry.state == "failed")
    assert failed.error == "RunError: the loss is <nan>" and failed.values["optim.learning_rate"] == 1.0


def test_a_run_by_itself_ends_as_its_records_say(tmp_path):
    folder = run(tmp_path / "a", state="stopped")
    assert [entry.state for entry in gather([folder]).entries] == ["stopped"]
    (folder / "records.jsonl").unlink()
    assert [entry.state for entry in gather([folder]).entries] == ["unfinished"]
    (entry,) = gather([run(tmp_path / "b")]).entries
    assert (entry.state, entry.seed, entry.run.outcome["step_flops"]) == ("done", 0, 3e9)


def test_a_line_that_a_kill_cut_off_is_no_line(tmp_path):
    folder = run(tmp_path / "a")
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"state": "fai')
    (entry,) = gather([folder]).entries
    assert entry.state == "done" and len(entry.run.outcomes) == 1


@pytest.mark.parametrize(
    ("line", "message"), [('{"state": "fine"}\n', "has no `state`"), ("{\n", r"records\.jsonl, line 2 is not JSON")]
)
def test_a_malformed_outcome_is_named(tmp_path, line, message):
    folder = run(tmp_path / "a")
    with (folder / "records.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=message):
        gather([folder])


def test_folders_that_hold_nothing_are_said(tmp_path, study):
    with pytest.raises(UserError, match="holds no run and no study"):
        gather([tmp_path])
    with pytest.raises(UserError, match="Did you mean"):
        gather([study.parent / "tiniy"])
    with pytest.raises(UserError, match="No folder is named"):
        gather([])
    shutil.copytree(study, tmp_path / "copy")
    (tmp_path / "copy" / "trials" / "0003" / "trial.json").write_text(json.dumps({"state": "complet"}))
    with pytest.raises(UserError, match=r"its state is 'complet'\. .*complete"):
        gather([tmp_path / "copy"])
