"""Locks of folders that the system takes back when their owner dies, however it dies."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

NAME = ".lock"
"""The file that is locked, in a run folder."""
HELD, UNSUPPORTED = (errno.EACCES, errno.EAGAIN), (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


class Held(Exception):
    """Another process holds the lock; the message says which one, as far as its file tells."""


@contextmanager
def held(folder: Path, name: str = NAME, *, wait: bool = False, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock `name` of `folder`, made if need be, as long as the block runs.

    A record lock (POSIX `fcntl`; NFS knows it too): the kernel drops it with the process, child processes do not
    inherit it, and nothing has to be cleaned up after a crash. The file names its owner for messages alone. A file
    system without locks is said, and the block runs.

    Args:
      folder: what is locked.
      name: of the file in it.
      wait: until the lock is free; otherwise a lock that is held is an error.
      say: prints one line.

    Raises:
      Held: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+", encoding="utf8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in HELD:
                raise Held(_owner(file.name)) from error
            if error.errno not in UNSUPPORTED:
                raise
            say(f"warning: {folder} is on a file system without locks; see that no second run uses it.")
        _sign(file)
        yield


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    file.write(json.dumps(owner) + "\n")
    file.flush()


def _owner(path: str) -> str:
    """Who holds the lock, in words, as far as the file tells."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
