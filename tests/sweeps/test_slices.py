"""A worker of two processes: process 0 claims trials, the other takes part in each; what happens when one is gone."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.sweeps.workers import ROOT, opened, worker_of
from tljax.base.errors import RunError
from tljax.sweeps.slices import LEAVING, Leader, folder_of, follow
from tljax.sweeps.worker import Stop, work

FLAGS = ["--coordinator=host:1", "--processes=2", "--process=0"]
FOLLOW = """
import sys
from pathlib import Path
from tljax.sweeps.slices import follow
from tljax.sweeps.worker import Stop
with Stop().heard() as stop:
    follow(Path(sys.argv[1]), 1, stop)
"""


def begin_follower(folder) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FOLLOW, str(folder)], cwd=ROOT)


def test_each_process_runs_its_part_of_every_trial(tmp_path):
    study, stop = opened(tmp_path / "study", {"seeds": 3, "grid": {"train.seconds": [0.1]}}), Stop()
    folder = folder_of(study.folder, "host:1")
    follower = begin_follower(folder)
    leader = Leader(folder, stop)
    worker = worker_of(study, stop, options=FLAGS, say=lambda line: None)
    try:
        work(worker._replace(announce=leader.announce, tick=leader.beat, together=False))
        time.sleep(1)  # the other process ends a moment after this one's last trial
    finally:
        leader.end()
    assert follower.wait(timeout=30) == 0
    assert [row.state for row in study.rows()] == ["complete"] * 3
    study.close()
    parts = [path.read_text() for path in (tmp_path / "study").glob("trials/*/process-1")]
    assert parts == ["process-1\n"] * 3


def test_a_process_that_is_stopped_stops_all(tmp_path):
    study, stop = opened(tmp_path / "study", {"seeds": 2, "grid": {"train.seconds": [1.5]}}), Stop()
    folder = folder_of(study.folder, "host:1")
    follower = begin_follower(folder)
    leader = Leader(folder, stop)
    worker = worker_of(study, stop, options=FLAGS, say=lambda line: None)

    def tick():
        leader.beat()
        if list((tmp_path / "study").glob("trials/*/metrics.jsonl")) and follower.poll() is None:
            follower.send_signal(signal.SIGTERM)

    work(worker._replace(announce=leader.announce, tick=tick, together=False))
    leader.end()
    assert stop.signal == signal.SIGTERM and (folder / LEAVING).exists()
    follower.wait(timeout=30)
    assert [row.state for row in study.rows()] == ["waiting"] * 2, "both can be continued"
    study.close()


def test_a_silent_process_0_is_an_error_and_an_old_one_is_not_believed(tmp_path):
    stop = Stop()
    with pytest.raises(RunError, match="Process 0 of this slice gives no sign"):
        follow(tmp_path, 1, stop, silence=0.5)
    old = Leader(tmp_path, stop)
    old.announce([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"])
    with pytest.raises(RunError, match="gives no sign"):
        follow(tmp_path, 1, stop, silence=0.5)
    assert not (tmp_path / "ran").exists(), "nobody is there who would run the other part"
    new = Leader(tmp_path, stop)
    threading.Timer(0.7, lambda: new.announce([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"])).start()
    threading.Timer(2.0, new.end).start()
    follow(tmp_path, 1, stop, silence=5)
    assert (tmp_path / "ran").exists()
