"""One owner for a run folder: a lock that the system takes back when its owner dies, however it dies."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tljax.base.errors import UserError
from tljax.base.processes import agreed, gathered, several

NAME = ".lock"
PATIENCE = 30.0
"""Seconds in which a file must show on all machines; NFS looks at a folder again after 30 to 60."""
HELD, UNSUPPORTED = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def owned(workdir: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Holds `workdir`, made if need be, as long as the block runs.

    A record lock of the file `.lock` (POSIX `fcntl`; NFS knows it too): the kernel drops it with the process, child
    processes do not inherit it, and nothing has to be cleaned up after a crash. The file names its owner for the
    message alone. A file system without locks is said, and the run goes on. Of several processes that train together
    the first one holds it for all.

    Args:
      workdir: the run folder.
      say: prints one line.

    Raises:
      UserError: another process holds it.
    """
    with ExitStack() as stack:
        agreed(lambda: stack.enter_context(_held(workdir, say)))
        yield


@contextmanager
def _held(workdir: Path, say: Callable[[str], None]) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / NAME).open("a+", encoding="utf8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"The workdir {workdir} is in use by {_owner(file.name)}. Wait for it, stop it, or give another "
                    "--workdir."
                ) from error
            if error.errno not in UNSUPPORTED:
                raise
            say(f"warning: {workdir} is on a file system without locks; see that no second run uses it.")
        file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(owner) + "\n")
        file.flush()
        yield


def _owner(path: str) -> str:
    """Who holds the lock, in words, as far as the file tells."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def seen_by_all(workdir: Path) -> None:
    """Refuses a run folder that is not the same one in every process, which would lose parts of the checkpoints.

    Raises:
      UserError: some process does not see the config.json that process 0 wrote.
    """
    if not several():
        return
    path = workdir / "config.json"
    theirs = gathered(path.read_text(encoding="utf8") if path.exists() else None)
    end = time.monotonic() + PATIENCE
    while not (same := path.exists() and path.read_text(encoding="utf8") == theirs[0]) and time.monotonic() < end:
        time.sleep(1)
    blind = [process for process, sees in enumerate(gathered(same)) if not sees]
    if blind:
        raise UserError(
            f"The workdir {workdir} is not the same folder in all processes: {', '.join(map(str, blind))} of "
            f"{len(theirs)} do not see what process 0 wrote. Give a folder on a file system that all machines share."
        )
