"""records.jsonl: a line each time that a run ends, whatever ended it, and never half of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tljax.base.errors import UserError
from tljax.train.outcome import recorded

ROOT = Path(__file__).parents[2]


def lines(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_line_tells_config_place_cost_and_result(tmp_path):
    with recorded(tmp_path, {"seed": 1}, {"pretrained": "a"}, steps=9) as line:
        sum(i * i for i in range(300_000))
        line.update(state="done", step=9, metrics={"test": {"accuracy": 0.5}})
    (found,) = lines(tmp_path)
    assert (found["state"], found["config"], found["digests"]) == ("done", {"seed": 1}, {"pretrained": "a"})
    assert found["version"] == "0.1.0" and found["versions"]["jax"] and found["devices"]["count"] >= 1
    assert 0 < found["processor_seconds"] < 10 and 0 < found["seconds"] < 10
    assert 1e7 < found["peak_memory"] < 1e12
    assert (found["step"], found["steps"], found["metrics"]) == (9, 9, {"test": {"accuracy": 0.5}})


def test_what_fails_and_what_is_interrupted_is_told_and_goes_on_as_it_was(tmp_path):
    for error, state in ((ValueError("bad"), "failed"), (KeyboardInterrupt(), "stopped")):
        with pytest.raises(type(error)), recorded(tmp_path, {}, {}) as line:
            line["step"] = 3
            raise error
        assert (lines(tmp_path)[-1]["state"], lines(tmp_path)[-1]["step"]) == (state, 3)
    assert lines(tmp_path)[0]["error"] == "ValueError: bad"
    with recorded(tmp_path, {}, {}):
        pass
    states = [line["state"] for line in lines(tmp_path)]
    assert states == ["failed", "stopped", "stopped"], "nobody said that it is done"


def test_a_mistake_of_the_user_is_no_run(tmp_path):
    with pytest.raises(UserError), recorded(tmp_path, {}, {}):
        raise UserError("another config")
    with recorded(tmp_path, {}, {}) as line:
        line.clear()
    assert not (tmp_path / "records.jsonl").exists()


def test_what_a_kill_left_of_a_line_is_cut_off(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"state": "done"}\n{"state": "do')
    with recorded(tmp_path, {}, {}) as line:
        line["state"] = "done"
    assert len(lines(tmp_path)) == 2


def test_a_place_that_is_gone_does_not_hide_why_the_run_failed(tmp_path):
    with pytest.raises(ValueError, match="the reason"), recorded(tmp_path / "gone", {}, {}):
        raise ValueError("the reason")
    with pytest.raises(OSError), recorded(tmp_path / "gone", {}, {}):
        pass


def test_a_line_that_finds_no_room_leaves_nothing_of_itself(tmp_path):
    """In a process of its own, in which no file may grow beyond some bytes: as on a full disk, the write is cut off."""
    code = (
        "import resource, sys; from pathlib import Path; from tljax.train.outcome import recorded\n"
        "folder = Path(sys.argv[1])\n"
        "with recorded(folder, {}, {}): pass\n"
        "size = (folder / 'records.jsonl').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with recorded(folder, {'long': 'x' * 500}, {}): pass\n"
        "except OSError as error: print('refused', error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "refused 27" in done.stdout, done.stdout + done.stderr
    assert len(lines(tmp_path)) == 1
