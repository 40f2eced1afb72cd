"""One owner for a run folder: a lock that the system takes back when its owner dies, however it dies."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tljax.base.errors import UserError
from tljax.base.lock import Held, held
from tljax.base.processes import agreed, gathered, several

PATIENCE = 30.0
"""Seconds in which a file must show on all machines; NFS looks at a folder again after 30 to 60."""


@contextmanager
def owned(workdir: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Holds `workdir`, made if need be, as long as the block runs.

    The lock is that of `tljax.base.lock`; of several processes that train together the first one holds it for all.

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
    try:
        with held(workdir, say=say):
            yield
    except Held as error:
        raise UserError(
            f"The workdir {workdir} is in use by {error}. Wait for it, stop it, or give another --workdir."
        ) from error


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
