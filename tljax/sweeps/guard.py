"""Becomes another program that ends with the process that started it: `python guard.py PARENT CORES COMMAND …`.

A program of its own, since what is done between fork and exec of a process that has threads may never end.
"""

import ctypes
import os
import signal
import sys

DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux: when the parent ends, however it ends, the system sends the signal; it outlives exec."""


def main(parent: int, cores: str, command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # killed in between
            sys.exit(1)
        if cores:
            os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
