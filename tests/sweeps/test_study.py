"""Studies with real workers: every trial finishes exactly once, whoever is killed; failed, stopped and equal trials.

The trials are run by `stand_in.py`: these tests are about who runs what and when, not about training.
"""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy

from tests.processes import wait_until
from tests.sweeps.workers import begin, opened, worker_of
from tljax.base.errors import UserError
from tljax.sweeps.worker import MOST_DEATHS, Stop, work

RATES = "optim.learning_rate"


def lines(study: Path, name: str) -> list[int]:
    """How often each trial started, or finished."""
    counts = [folder / name for folder in sorted((study / "trials").iterdir())]
    return [len(path.read_text().splitlines()) if path.exists() else 0 for path in counts]


def trials(study: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((study / "trials").glob("*/trial.json"))]


def work_here(folder: Path, given: dict, *, stop: Stop | None = None, retry: bool = False, **more):
    """Works at a study in this process; its rows."""
    study = opened(folder, given)
    if retry:
        study.retry()
    work(worker_of(study, stop or Stop(), say=lambda line: None, **more))
    rows = study.rows()
    study.close()
    return rows


def assert_all_finish_once_when_one_is_killed(folder: Path, given: dict, url: str | None, workers: int) -> None:
    """Starts workers, kills one in the middle of a trial, and checks that every trial is finished exactly once."""
    started = [begin(folder, given, url) for _ in range(workers)]

    def busy() -> list[Path]:
        """The locks of the folders in which the first worker has begun a trial."""
        locks = (path for path in folder.glob("trials/*/.worker") if (path.parent / "metrics.jsonl").exists())
        mine = [path for path in locks if f'"pid": {started[0].pid}' in path.read_text()]
        return [path for path in mine if not (path.parent / "finishes").exists()]

    found: list[Path] = []
    wait_until(lambda: bool(found.extend(busy()) or found), seconds=60)
    victim = found[0].parent
    started[0].send_signal(signal.SIGKILL)
    codes = [process.wait(timeout=120) for process in started]
    assert codes == [-signal.SIGKILL] + [0] * (workers - 1), (folder.parent / f"{folder.name}.log").read_text()
    count = len(given["grid"][RATES]) * given["seeds"]
    assert lines(folder, "finishes") == [1] * count
    assert len((victim / "starts").read_text().splitlines()) == 2, "another worker went on with it"
    assert len((victim / "metrics.jsonl").read_text().splitlines()) == 4, "its records were kept: nothing ran twice"
    study = opened(folder, given, url)
    rows = study.rows()
    study.close()
    assert [(row.state, row.value) for row in rows] == [("complete", row.params[RATES]) for row in rows]
    found = {(each["values"]["seed"], each["values"][RATES], each["state"], each["value"]) for each in trials(folder)}
    assert found == {(s, rate, "complete", rate) for s in range(given["seeds"]) for rate in given["grid"][RATES]}


def test_four_workers_of_which_one_is_killed_finish_every_trial_exactly_once(tmp_path):
    given = {"grid": {RATES: [0.1, 0.2, 0.3, 0.4, 0.5], "train.seconds": [0.2]}, "seeds": 2}
    assert_all_finish_once_when_one_is_killed(tmp_path / "study", given, None, workers=4)


def test_three_workers_on_postgresql_of_which_one_is_killed_do_too(tmp_path, postgres):
    given = {"grid": {RATES: [0.1, 0.2, 0.3, 0.4], "train.seconds": [0.2]}, "seeds": 2}
    assert_all_finish_once_when_one_is_killed(tmp_path / "study", given, postgres, workers=3)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["storage"].startswith("postgresql+psycopg://")
    assert not (tmp_path / "study" / "study.db").exists()


def test_what_fails_is_recorded_does_not_stop_the_others_and_is_retried_when_asked(tmp_path):
    given = {"joint": [{"name": "bad", "train.fail": True}, {"name": "good", "train.fail": False}]}
    rows = work_here(tmp_path / "study", given)
    assert [row.state for row in rows] == ["failed", "complete"]
    assert "exit code 3" in rows[0].error and rows[0].error.endswith("It was told to.")
    assert {each["names"]["joint"]: each["state"] for each in trials(tmp_path / "study")} == {
        "bad": "failed",
        "good": "complete",
    }
    work_here(tmp_path / "study", given)
    assert lines(tmp_path / "study", "starts") == [1, 1], "starting again runs nothing again"
    rows = work_here(tmp_path / "study", given, retry=True)
    assert sorted(lines(tmp_path / "study", "starts")) == [1, 2]
    assert sorted((row.number, row.state) for row in rows) == [(1, "complete"), (2, "failed")]


def test_a_stopped_worker_leaves_its_trial_to_be_continued(tmp_path):
    given, stop, folder = {"seeds": 2, "grid": {"train.seconds": [1.0]}}, Stop(), tmp_path / "study"

    def tick():
        if list(folder.glob("trials/*/metrics.jsonl")) and not stop.asked:
            stop(signal.SIGINT, None)

    rows = work_here(folder, given, stop=stop, tick=tick)
    assert [row.state for row in rows] == ["waiting", "waiting"]
    before = len(next(folder.glob("trials/*/metrics.jsonl")).read_text().splitlines())
    assert 1 <= before < 4
    assert [row.state for row in work_here(folder, given)] == ["complete", "complete"]
    assert sorted(lines(folder, "starts")) == [1, 2] and lines(folder, "finishes") == [1, 1]
    assert [len(path.read_text().splitlines()) for path in folder.glob("trials/*/metrics.jsonl")] == [4, 4]


def test_a_sampled_study_has_as_many_trials_as_it_says_and_runs_equal_ones_once(tmp_path):
    given = {"choice": {RATES: [0.1, 0.2]}, "trials": 6, "sampler": "random", "seeds": 2}
    rows = work_here(tmp_path / "study", given)
    assert [row.params["seed"] for row in rows] == [0, 1, 0, 1, 0, 1], "the seeds take turns"
    drawn = Counter((row.params[RATES], row.params["seed"]) for row in rows)
    assert len(drawn) < 6 and all(row.value == row.params[RATES] for row in rows)
    assert lines(tmp_path / "study", "starts") == [1] * len(drawn)
    longer = work_here(tmp_path / "study", {**given, "trials": 8})
    assert len(longer) == 8 and longer[:6] == rows
    again = work_here(tmp_path / "again", {**given, "trials": 8})
    assert [row.params for row in again] == [row.params for row in longer], "a trial's number decides what is drawn"


def test_settings_with_two_names_run_once(tmp_path):
    probe = {"strategy": {"linear_probe": {}}, "train.cache": "auto"}
    given = {"joint": [{"name": "a", **probe}, {"name": "b", **probe}]}
    rows = work_here(tmp_path / "study", given)
    assert [(row.state, row.value, row.params["joint"]) for row in rows] == [("complete", 0.5, n) for n in "ab"]
    assert lines(tmp_path / "study", "starts") == [1]


def test_probes_are_claimed_together_and_continued_when_their_worker_is_killed(tmp_path):
    probe = {"strategy": [{"linear_probe": {}}], "train.cache": ["auto"], "train.seconds": [0.3]}
    given, folder = {"grid": {**probe, RATES: [0.1, 0.2, 0.3]}, "seeds": 2}, tmp_path / "study"
    worker = begin(folder, given)
    wait_until(lambda: bool(list(folder.glob("trials/*/finishes"))), seconds=60)
    study = opened(folder, given)
    assert {row.state for row in study.rows()} == {"running"} and study.claim() is None
    study.close()
    assert len(list((folder / "together").iterdir())) == 1
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    rows = work_here(folder, given)
    assert [(row.state, row.value) for row in rows] == [("complete", row.params[RATES]) for row in rows]
    assert lines(folder, "finishes") == [1] * 6, "what was finished before the kill is not run again"


def test_tpe_looks_where_it_was_good_and_never_sees_the_seed(tmp_path):
    given = {"log_uniform": {RATES: [1e-4, 1.0]}, "trials": 30, "seeds": 2, "sampler": "tpe"}
    study = opened(tmp_path / "study", given)
    drawn = []
    while (claimed := study.claim()) is not None:
        assert set(claimed.trial.params) == {RATES}
        drawn.append(claimed.values[RATES])
        study.finish(claimed, "complete", claimed.values[RATES])
    study.close()
    assert all(1e-4 <= rate <= 1 for rate in drawn)
    early, late = sorted(drawn[:10])[5], sorted(drawn[-10:])[5]
    assert late > 0.3 and late > early, "the best value is at the upper end"


def test_a_pruner_ends_what_does_badly(tmp_path):
    given = {
        "grid": {RATES: [0.9, 0.8, 0.7, 0.1], "train.seconds": [0.7]},
        "pruner": {"name": "median", "startup": 2},
    }
    rows = work_here(tmp_path / "study", given)
    assert [row.state for row in rows] == ["complete", "complete", "pruned", "pruned"]
    last = next(each for each in trials(tmp_path / "study") if each["values"][RATES] == 0.1)
    assert last["state"] == "pruned" and last["value"] < 0.1, "the best of the evaluations that it got to"
    assert sum(lines(tmp_path / "study", "finishes")) == 2
    with pytest.raises(UserError, match=r"sweep\(\).pruner.startp is not an option of median. Did you mean 'startup'"):
        opened(tmp_path / "other", {**given, "pruner": {"name": "median", "startp": 2}})


def test_hyperband_lets_the_best_go_on(tmp_path):
    rates, ended = [0.9 - 0.05 * i for i in range(12)], {}
    pruner = {"name": "hyperband", "most": 9, "factor": 3}
    study = opened(tmp_path / "study", {"grid": {RATES: rates}, "pruner": pruner})
    while (claimed := study.claim()) is not None:
        rate = claimed.values[RATES]
        seen = next((n for n in range(9) if study.report(claimed, n, rate * (n + 1) / 9)), None)
        study.finish(claimed, "pruned" if seen is not None else "complete", rate)
        ended[rate] = seen
    study.close()
    stopped = [rate for rate, seen in ended.items() if seen is not None]
    assert ended[0.9] is None and len(stopped) >= 4, "each is worse than all before it"
    assert {ended[rate] for rate in stopped} <= {1, 3}, "at the rungs of its brackets"


def fall_silent(study):
    """Sets back the last signs of life, which leaves no time to chance."""
    with study._rows.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'"))


def test_a_trial_whose_workers_keep_dying_has_failed(tmp_path):
    study = opened(tmp_path / "study", {"seeds": 1}, grace=600)
    for deaths in range(MOST_DEATHS):
        claimed = study.claim()
        assert claimed is not None and claimed.deaths == deaths
        assert study.claim() is None, "it has one worker at a time"
        fall_silent(study)
    work(worker_of(study, Stop(), say=lambda line: None))
    row = study.rows()[0]
    assert row.state == "failed" and row.error == "3 workers died while they had this trial."
    assert lines(tmp_path / "study", "starts") == [0]
    study.close()


def test_a_worker_that_was_taken_for_dead_and_lives_ends_its_trial_once(tmp_path):
    study = opened(tmp_path / "study", {"seeds": 1}, grace=600)
    slow = study.claim()
    fall_silent(study)
    other = study.claim()
    assert (other.number, other.deaths) == (slow.number, 1)
    study.finish(slow, "complete", 0.5)
    study.finish(other, "failed", error="too late")
    row = study.rows()[0]
    assert (row.state, row.value, row.error) == ("complete", 0.5, None)
    study.give_back(other)
    assert study.open() == 0
    study.close()


def test_another_study_in_the_folder_is_refused_with_what_differs(tmp_path):
    opened(tmp_path / "study", {"grid": {RATES: [0.1]}}).close()
    with pytest.raises(UserError, match=r"axes.grid.optim.learning_rate: \[0.1\] → \[0.1, 0.2\]"):
        opened(tmp_path / "study", {"grid": {RATES: [0.1, 0.2]}})
    with pytest.raises(UserError, match="say in --storage where it is"):
        opened(tmp_path / "study", {"grid": {RATES: [0.1]}}, url=f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(UserError, match="no URL"):
        opened(tmp_path / "study", {"grid": {RATES: [0.1]}}, url="somewhere")


def test_the_records_of_a_lost_database_are_used(tmp_path):
    given = {"grid": {RATES: [0.1, 0.2]}}
    first = work_here(tmp_path / "study", given)
    (tmp_path / "study" / "study.db").unlink()
    again = work_here(tmp_path / "study", given)
    assert [(row.state, row.value) for row in again] == [(row.state, row.value) for row in first]
    assert lines(tmp_path / "study", "starts") == [1, 1]
