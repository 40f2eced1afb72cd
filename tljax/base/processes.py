"""Several processes that run one program: what one of them decides, what all of them know, and arrays that they share.

jax runs the same program in each process, and a computation over all devices ends only if every process starts it. So
whatever decides what is computed next must be the same everywhere: where it depends on files, clocks or floating-point
libraries, process 0 decides and tells the others (`agreed`). With one process each function here is the plain thing.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tljax.base.errors import RunError, UserError

T = TypeVar("T")
LOST = re.compile(r"gloo|connection|socket|heartbeat|unavailable|deadline_exceeded|aborted|barrier", re.IGNORECASE)
"""What jax and Orbax say where a process is gone."""
LEAST = 1024
"""Messages are padded to this many bytes or a doubling of it, since each length is a program to compile."""


def several() -> bool:
    """Whether this process is one of several that run one program. Asks no device, so jax stays as it is."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this process is the one that writes and speaks: process 0."""
    return not several() or jax.process_index() == 0


def name() -> str:
    """This process, for messages: "process 1 of 4"; "" where it is alone."""
    return f"process {jax.process_index()} of {jax.process_count()}" if several() else ""


def lost(error: Exception) -> str | None:
    """What to say of a failure that the end of another process caused; None for other failures."""
    # A computation that fails where it is started raises the ValueError of its status, "UNKNOWN: Gloo … failed".
    status = isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error))
    known = status or isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError))
    if not (several() and known and LOST.search(str(error))):
        return None
    return (
        f"Another process has ended, or cannot be reached ({_first_line(error)}). See what the others said last. What "
        "was saved is intact; the same commands, given to all again, continue from there."
    )


def agreed(decide: Callable[[], T]) -> T:
    """What `decide()` returns in process 0, in every process; the others do not call it, and wait.

    Args:
      decide: returns a JSON value. Of tuples become lists, and of whole numbers as keys texts, where there are several
        processes.

    Raises:
      UserError, RunError: as `decide` in process 0, in every process; another failure of it is a `RunError` elsewhere.
    """
    if not several():
        return decide()
    outcome, failure = None, None
    if first():
        try:
            outcome = {"value": decide()}
        except (UserError, RunError) as error:
            outcome, failure = {"fault": type(error).__name__, "message": str(error)}, error
        except Exception as error:
            outcome, failure = {"fault": "RunError", "message": f"Process 0 failed: {_first_line(error)}."}, error
    outcome = _broadcast(outcome)
    if failure is not None:
        raise failure
    if "fault" in outcome:
        raise (UserError if outcome["fault"] == "UserError" else RunError)(outcome["message"])
    return outcome["value"]


def together(act: Callable[[], T], *faults: type[Exception]) -> T:
    """What `act()` returns in this process. Where it raises one of `faults` in any, all raise that of the first.

    Without it the processes where `act` went well would wait for ever for those where it did not. `act` itself must not
    compute over all devices.
    """
    if not several():
        return act()
    result, fault = None, None
    try:
        result = act()
    except faults as error:
        fault = {"kind": [isinstance(error, kind) for kind in faults].index(True), "message": str(error)}
    for process, found in enumerate(gathered(fault)):
        if found is not None:
            raise faults[found["kind"]](f"in process {process}: {found['message']}")
    return result


def gathered(value: Any) -> list[Any]:
    """The JSON values of all processes, process 0's first."""
    if not several():
        return [value]
    text = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.array([len(text)], np.int32)).ravel()
    found = multihost_utils.process_allgather(_padded(text, int(sizes.max())))
    return [json.loads(row[:size].tobytes()) for row, size in zip(found, sizes, strict=True)]


def _broadcast(value: Any) -> Any:
    """Process 0's JSON value, in every process."""
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    found = multihost_utils.broadcast_one_to_all(_padded(text[:size], size))
    return json.loads(np.asarray(found)[:size].tobytes())


def _padded(text: bytes, size: int) -> np.ndarray:
    room = max(LEAST, 1 << (size - 1).bit_length())
    return np.frombuffer(text.ljust(room, b"\0"), np.uint8)


def place(tree: Any, sharding: Any) -> Any:
    """As `jax.device_put`, also where devices belong to other processes; each gives the whole of the same values.

    `device_put` would compare the values of all processes first, which takes a copy of each leaf for every process on
    every device.

    Args:
      tree: arrays, of the host or of this process's devices, or already over all devices.
      sharding: one, or a tree of them whose structure is the beginning of that of `tree`.
    """
    if not several():
        return jax.device_put(tree, sharding)
    return jax.tree.map(_placed, tree, jax.tree.broadcast(sharding, tree))


def _placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = _canonical(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _canonical(leaf: Any) -> np.ndarray:
    """`leaf` on the host, in the dtype that jax would give it."""
    value = np.asarray(leaf)
    return value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)


def whole(leaf: Any) -> np.ndarray:
    """The values of an array on the host, also where parts of it lie with other processes: every process gets all."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def parts(sharding: jax.sharding.Sharding) -> tuple[tuple[int, ...], int]:
    """(the parts of a batch that this process reads, the equal consecutive parts that a batch is cut into).

    A part is what one device holds. Several processes may hold the same part (an axis that does not split the batch
    runs across them), and the parts of one need not be neighbours: the mesh decides. ((0,), 1) where every process
    reads every part, so that there is nothing to divide.

    Args:
      sharding: of arrays with a leading batch axis.
    """
    if not several():
        return (0,), 1
    count = sharding.num_devices  # more than enough rows for every device to hold other ones
    slices = sharding.devices_indices_map((count,))
    starts = sorted({index[0].start or 0 for index in slices.values()})
    mine: dict[int, set[int]] = {}
    for device, index in slices.items():
        mine.setdefault(device.process_index, set()).add(starts.index(index[0].start or 0))
    if all(len(held) == len(starts) for held in mine.values()):
        return (0,), 1
    return tuple(sorted(mine[jax.process_index()])), len(starts)


def place_batch(batch: Any, sharding: jax.sharding.Sharding) -> Any:
    """A batch on the devices, from the rows of `parts(sharding)` that this process read.

    Args:
      batch: tree of arrays with a leading axis of rows, the parts in ascending order.
      sharding: of the whole batch.
    """
    if not several():
        return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
    numbers, count = parts(sharding)

    def placed(rows: np.ndarray) -> jax.Array:
        rows = _canonical(rows)
        size = len(rows) // len(numbers)

        def held(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size * count)
            here = start - (start // size - numbers.index(start // size)) * size
            return rows[(slice(here, here + stop - start), *index[1:])]

        return jax.make_array_from_callback((size * count, *rows.shape[1:]), sharding, held)

    return jax.tree.map(placed, batch)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
