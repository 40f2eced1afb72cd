"""How this process keeps its memory."""

import ctypes
import os
import sys

_MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 2**28), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""Name → (parameter, value) of glibc's mallopt (malloc.h): never give memory back, and take it in large pieces."""


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed, instead of handing it back to the kernel; call it before jax is imported.

    XLA's buffers on a CPU are large, so that glibc maps each of them anew in every step and the kernel clears its pages
    anew, which took up to half of a step's time (docs/log.md). The process then stays as large as it ever was. Does
    nothing, and returns False, on other C libraries and where the user set glibc's own variables (MALLOC_…_).
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _MALLOPT.values())
