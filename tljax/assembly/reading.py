"""How the entries of config.data are read: whose task each is, how many examples a step takes of each, an epoch."""

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tljax.assembly.sections import Entry
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Method, Task
from tljax.sharding import BATCH_AXES
from tljax.train.settings import Settings


class Reading(NamedTuple):
    """What a step takes from its streams.

    Attributes:
      sizes: stream → examples of a batch.
      records: of an epoch: those of the stream `train`, or of all streams where none is called so.
      examples: of these that a step reads.
    """

    sizes: Mapping[str, int]
    records: int
    examples: int

    def timed(self, settings: Settings) -> Settings:
        """`settings`, counting epochs by what a step reads."""
        return settings._replace(batch_size=self.examples)

    def lengths(self, settings: Settings) -> dict[str, float]:
        """Unit of time of a plan → the steps that it has."""
        steps = self.timed(settings).total_steps(self.records)
        return {"steps": 1, "epochs": self.records / self.examples, "run": steps}


def reading_of(
    method: Method, settings: Settings, entries: Mapping[str, Entry], counts: Mapping[str, int], *, unit: int
) -> Reading:
    """The batch sizes of the method's streams, and what an epoch is.

    An entry's own `batch_size` stands. Without one a batch has `settings.batch_size` examples, or, where the method
    mixes its streams, its share of what the others leave of these.

    Args:
      method: its `streams` are entries, all of them there.
      settings: of the section `train`.
      entries: name → `Entry`.
      counts: stream → number of records.
      unit: what every batch size is a multiple of: devices that share a batch · accumulated parts.

    Raises:
      UserError: a batch too small to hold examples of every stream.
    """
    given = {name: entries[name].batch_size for name in method.streams}
    sizes = {name: size or settings.batch_size for name, size in given.items()}
    free = [name for name, size in given.items() if size is None]
    if method.mixing is not None and free:
        left = settings.batch_size - sum(size or 0 for size in given.values())
        if left < unit * len(free):
            raise UserError(
                f"config.train.batch_size is {settings.batch_size}, of which {max(left, 0)} examples are left for "
                f"{', '.join(free)}; each needs at least {unit}. Make it larger."
            )
        shares = method.mixing({name: counts[name] for name in free})
        sizes |= {name: unit * share for name, share in share_out(shares, left // unit).items()}
    names = ("train",) if "train" in sizes else tuple(sizes)
    return Reading(sizes, sum(counts[name] for name in names), sum(sizes[name] for name in names))


def sharers(mesh: Any) -> int:
    """The devices that share a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)


def check_batches(settings: Settings, mesh: Any, entries: Mapping[str, Entry]) -> None:
    """Every part of a batch must be cut evenly among the devices that share it."""
    ways = sharers(mesh)
    parts = {
        "train.batch_size": (settings.batch_size, settings.accumulate),
        "train.eval_batch_size": (settings.eval_batch_size or settings.batch_size, 1),
        **{
            f"data.{name}.batch_size": (x.batch_size, settings.accumulate)
            for name, x in entries.items()
            if x.batch_size
        },
    }
    raise_faults(
        f"The batches do not fit the mesh {dict(mesh.shape)} (config.mesh):",
        [
            f"config.{name} is {size}"
            + (f", in {count} accumulated parts" if count > 1 else "")
            + f"; it must be a multiple of {ways * count}."
            for name, (size, count) in parts.items()
            if size % (ways * count)
        ],
    )


def share_out(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers, 1 at least, that sum to `count` and are near `shares` · `count`; `shares` sum to 1."""
    given = dict.fromkeys(shares, 1)
    for _ in range(count - len(given)):
        given[max(given, key=lambda name: shares[name] * count - given[name])] += 1
    return given


def task_of(task: Task, entry: Entry) -> Task:
    """The task that `entry` belongs to: `task`, or the one of its parts that the entry names."""
    return task if entry.task is None else task.parts[entry.task]


def check_tasks(section: Mapping[str, Any] | None, entries: Mapping[str, Entry]) -> None:
    """Each entry names one of several tasks, or none where there is one task only."""
    section = section or {}
    tasks, faults = tuple(section.get("tasks") or ()), []
    if "tasks" in section and not tasks:  # the task itself says so
        return
    for name, entry in entries.items():
        if entry.task is None and tasks:
            faults.append(f"config.data.{name}.task is not given. Accepted: {', '.join(tasks)}.")
        elif entry.task is not None and not tasks:
            named = section.get("name", "classification")
            faults.append(
                f"config.data.{name}.task is {entry.task!r}, and config.task is one task, {named!r}. Leave it out, or "
                "use config.task.name='several'."
            )
        elif entry.task is not None and entry.task not in tasks:
            faults.append(f"config.data.{name}.task is {entry.task!r}. {suggest(entry.task, tasks)}")
        elif tasks and name.startswith("train") and name != f"train_{entry.task}":
            faults.append(
                f"config.data.{name} has the task {entry.task!r}, whose training data are train_{entry.task}."
            )
    raise_faults("The entries of config.data do not fit the tasks:", faults)


def stream_seed(seed: int, name: str) -> int:
    """The seed of a stream's order and augmentation: the run's own for `train`, another one for every other name."""
    if name == "train":
        return seed
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
