"""Running a model over a whole split, in order, with nothing dropped."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.base.types import Task
from tljax.train.loop import to_device


def collect(predict: Callable, batches: Iterable[Mapping[str, Any]], sharding: Any) -> tuple[dict, Any, np.ndarray]:
    """`predict` of every example, in the order of the split.

    Args:
      predict: batch on the devices → dict of arrays with a leading example axis.
      batches: finite, from `eval_stream`; padding rows have index -1.
      sharding: of the batch.

    Returns:
      (predictions, targets or None, indices), each ordered by index.
    """
    parts, targets, indices = [], [], []
    pending: list[tuple[Any, Mapping[str, Any]]] = []

    def fetch(result, batch):
        real = np.asarray(batch["index"]) >= 0
        parts.append(jax.tree.map(lambda x: np.asarray(x)[real], result))
        indices.append(np.asarray(batch["index"])[real])
        if "targets" in batch:
            targets.append(np.asarray(batch["targets"])[real])

    for batch in to_device(iter(batches), sharding):
        pending.append((predict(batch), batch))
        if len(pending) > 1:  # the device works on this batch while the host reads the one before
            fetch(*pending.pop(0))
    for result, batch in pending:
        fetch(result, batch)
    index = np.concatenate(indices)
    order = np.argsort(index, kind="stable")
    predictions = jax.tree.map(lambda *xs: np.concatenate(xs)[order], *parts)
    return predictions, np.concatenate(targets)[order] if targets else None, index[order]


def measure(task: Task, predictions: Mapping[str, Any], targets: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers, tables) of the task's metrics: tables are what is not a single number (confusion, per class)."""
    found = task.metrics(predictions, targets)
    numbers = {name: float(value) for name, value in found.items() if np.isscalar(value)}
    return numbers, {name: value for name, value in found.items() if name not in numbers}
