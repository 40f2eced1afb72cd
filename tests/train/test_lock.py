"""One owner of a run folder: a second process is refused by name, and a dead owner holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from tljax.base.errors import UserError
from tljax.base.lock import NAME
from tljax.train.lock import owned

HOLD = """
import sys, time
from pathlib import Path
from tljax.train.lock import owned
with owned(Path(sys.argv[1]), say=print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_by_name_until_the_first_is_dead(holder, tmp_path):
    with (
        pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on .*, since 20"),
        owned(tmp_path / "run", say=print),
    ):
        pass
    (tmp_path / "run" / NAME).write_text("damaged")
    with pytest.raises(UserError, match="in use by another process"), owned(tmp_path / "run", say=print):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(tmp_path / "run", say=print):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run" / NAME).read_text()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import errno

    from tljax.base import lock

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    said = []
    with owned(tmp_path / "run", say=said.append):
        assert "without locks" in said[0]
