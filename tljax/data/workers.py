"""Processes that read and prepare data beside the training process."""

import multiprocessing
import os
import threading
from typing import Any


def read_by_workers(stream: Any, workers: int, *, ahead: int) -> Any:
    """Grain's iterable data set `stream`, read by so many processes, each `ahead` elements ahead; the order stays."""
    import grain

    _parse_flags()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    return stream.mp_prefetch(options, worker_init_fn=end_with_parent)


def end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker when the process that started it is gone: nobody tells it so where that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _parse_flags() -> None:
    """Grain's workers read absl's flags, which only `app.run` parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
