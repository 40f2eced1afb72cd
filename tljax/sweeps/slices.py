"""A worker that is several processes, as on a slice of a pod: process 0 claims trials, the others run what it says.

The study's folder is shared, so what process 0 says stands in a file there. It changes every few seconds as long as
process 0 lives, so nobody compares the clocks of two machines.
"""

import json
import time
import uuid
from pathlib import Path
from typing import Any

from tljax.base.errors import RunError
from tljax.base.files import write_whole
from tljax.sweeps.trials import start
from tljax.sweeps.worker import POLL, Stop

FOLDER, FILE, LEAVING = "slices", "next.json", "leaving"
BEAT = 2.0
"""Seconds between two changes of the file."""
SILENCE = 60.0
"""Seconds without a change after which process 0 counts as dead."""
ENDING = 30.0
"""Seconds that a run has to end by itself after it has ended in process 0."""


def folder_of(study: Path, name: str) -> Path:
    """Where the processes of a slice meet."""
    return study / FOLDER / "".join(c if c.isalnum() else "_" for c in name)


class Leader:
    """What process 0 tells the others. A class because it remembers what it has told."""

    def __init__(self, folder: Path, stop: Stop):
        self.folder, self.stop = folder, stop
        self._told = {"session": uuid.uuid4().hex, "beat": 0, "count": 0, "command": None, "end": False}
        self._last = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LEAVING).unlink(missing_ok=True)
        self._tell()

    def announce(self, command: list[str] | None) -> None:
        """The others start this command, or end theirs."""
        self._tell(command=command, count=self._told["count"] + (command is not None))

    def beat(self) -> None:
        """A sign of life; asks this worker to stop where another process of the slice was."""
        if time.monotonic() - self._last > BEAT:
            self._tell()
        if (self.folder / LEAVING).exists() and not self.stop.asked:
            self.stop(int((self.folder / LEAVING).read_text(encoding="utf8")), None)

    def end(self) -> None:
        """The others are done."""
        self._tell(command=None, end=True)

    def _tell(self, **changes: Any) -> None:
        self._told = {**self._told, **changes, "beat": self._told["beat"] + 1}
        write_whole(self.folder / FILE, json.dumps(self._told) + "\n")
        self._last = time.monotonic()


def follow(folder: Path, process: int, stop: Stop, *, silence: float = SILENCE) -> None:
    """What the other processes of a slice do: they run each command of process 0, until it ends.

    Args:
      folder: where the slice meets.
      process: the number of this process, from 1.
      stop: what ends this one; process 0 is told, so that all end.
      silence: seconds without a sign of process 0 after which it counts as dead.

    Raises:
      RunError: process 0 is silent.
    """
    child, mine, since = None, None, 0.0
    seen, heard, fresh = _read(folder), time.monotonic(), False
    while True:
        told = _read(folder)
        if told != seen:  # what stood there at the start may be of a process 0 that is long dead
            seen, heard, fresh = told, time.monotonic(), True
        quiet = time.monotonic() - heard > silence
        if stop.asked and child is None:
            return
        if stop.asked:
            write_whole(folder / LEAVING, str(stop.signal))
        if told.get("end") and child is None and (fresh or quiet):
            return
        if quiet and child is None:
            raise RunError(f"Process 0 of this slice gives no sign in {folder}. The same commands start all again.")
        if child is None and fresh and told.get("command") and told["count"] != mine:
            mine = told["count"]
            command = [f"--process={process}" if word == "--process=0" else word for word in told["command"]]
            child, since = start(command, folder / f"process-{process}.log"), 0.0
        if child is not None and child.poll() is not None:
            child = None
        elif child is not None and (quiet or stop.asked or told.get("count") != mine or not told.get("command")):
            since = since or time.monotonic()
            if time.monotonic() - since > ENDING or quiet:
                child.kill() if time.monotonic() - since > 2 * ENDING else child.terminate()
        time.sleep(POLL)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / FILE).read_text(encoding="utf8"))
    except FileNotFoundError:
        return {}
