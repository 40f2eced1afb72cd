"""`records.jsonl`: one line each time that a run ends, whatever ended it: config, versions, place, cost, result."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from tljax.base.errors import UserError
from tljax.base.processes import first
from tljax.train.continuing import versions_and_devices
from tljax.train.records import plain

NAME = "records.jsonl"
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def recorded(workdir: Path, config: Mapping[str, Any], digests: Mapping[str, str], **known: Any) -> Iterator[dict]:
    """Appends a line on what the context did; it fills the dict that it is given with what it learns on the way.

    The line has `state` ("stopped", until the context says "done"; "failed" where it raises, with the text in
    `error`), `config`, `version` and `commit` of tljax, `versions`, `devices`, `digests`, `seconds` by the clock (the
    whole run's, where the context says so), `processor_seconds` of this process, `peak_memory` of this process in
    bytes, and `device_memory`, the largest peak of a device that tells it. What the user did wrong is no run and leaves
    no line, and neither does a dict that was emptied. Of several processes the first one writes.

    Args:
      workdir: the run folder.
      config: resolved.
      digests: of the pretrained tree and of the live set.
      known: more of the line.
    """
    wall, processor = time.monotonic(), time.process_time()
    line: dict[str, Any] = {"state": "stopped", "config": plain(dict(config)), **_code(), **versions_and_devices()}
    line |= {"digests": dict(digests), "step": 0, "steps": 0, "step_flops": None, "metrics": {}, "best_step": None}
    line |= {"error": None, **known}

    def append() -> None:
        if not line:
            return
        line.setdefault("seconds", round(time.monotonic() - wall, 3))
        line.setdefault("processor_seconds", round(time.process_time() - processor, 3))
        line.update(_memory())
        _append(Path(workdir) / NAME, plain(line))

    try:
        yield line
    except UserError:
        raise
    except BaseException as error:
        if line:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            line.update(state="stopped" if stopped else "failed", error=f"{type(error).__name__}: {error}")
        with suppress(OSError):  # the place may be what failed, and its own message comes first
            append()
        raise
    append()


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line; what a kill left of the one before is cut off, and of a line that finds no room nothing stays."""
    if not first():
        return
    # Without a buffer, which would write the rest of a line that found no room when it is closed.
    with path.open("ab+", buffering=0) as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        rest = json.dumps(line).encode("utf8") + b"\n"
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(whole)
            raise


def _code() -> dict[str, str | None]:
    """The version of tljax, and the commit where it runs from a checkout, with "-dirty" where files were changed."""
    from tljax import __version__

    commit = None
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return {"version": __version__, "commit": commit}


def _memory() -> dict[str, int | None]:
    """Peaks in bytes: of this process, and of the device that used most where devices tell."""
    import resource

    # Linux counts in kibibytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return {"peak_memory": peak, "device_memory": max(told) or None}
