"""Running a model over a whole split, in order, with nothing dropped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.base.types import Task
from tljax.train.loop import to_device

UNKNOWN = -100
"""The integer target of what is padding: no token, no label."""


def collect(predict: Callable, batches: Iterable[Mapping[str, Any]], sharding: Any) -> tuple[dict, Any, np.ndarray]:
    """`predict` of every example, in the order of the split.

    Args:
      predict: batch on the devices → dict of arrays with a leading example axis.
      batches: finite, from `eval_stream`; padding rows have index -1.
      sharding: of the batch.

    Returns:
      (predictions, targets or None, indices), each ordered by index. Where batches have different lengths, the
      shorter ones are padded: predictions with 0, targets with −100 where they are integers and with 0 otherwise.
    """
    parts, targets, indices = [], [], []
    pending: list[tuple[Any, Mapping[str, Any]]] = []

    def fetch(result, batch):
        real = np.asarray(batch["index"]) >= 0
        parts.append(jax.tree.map(lambda x: np.asarray(x)[real], result))
        indices.append(np.asarray(batch["index"])[real])
        if "targets" in batch:
            targets.append(jax.tree.map(lambda x: np.asarray(x)[real], batch["targets"]))

    for batch in to_device(iter(batches), sharding):
        pending.append((predict(batch), batch))
        if len(pending) > 1:  # the device works on this batch while the host reads the one before
            fetch(*pending.pop(0))
    for result, batch in pending:
        fetch(result, batch)
    index = np.concatenate(indices)
    order = np.argsort(index, kind="stable")
    predictions = jax.tree.map(lambda *xs: _joined(xs, 0)[order], *parts)
    known = jax.tree.map(lambda *xs: _joined(xs, UNKNOWN)[order], *targets) if targets else None
    return predictions, known, index[order]


def _joined(parts: Sequence[np.ndarray], integer: int) -> np.ndarray:
    """`parts` under one another; shorter ones are padded at the end, with `integer` or 0.0."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    fill = integer if np.issubdtype(parts[0].dtype, np.integer) else 0
    missing = [[(0, 0), *((0, to - have) for to, have in zip(shape, x.shape[1:], strict=True))] for x in parts]
    return np.concatenate([np.pad(x, pads, constant_values=fill) for x, pads in zip(parts, missing, strict=True)])


def measure(
    task: Task, predictions: Mapping[str, Any], targets: Any, records: Sequence[Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers, tables) of the task's metrics: tables are what is not a single number (confusion, per class)."""
    found = task.metrics(predictions, targets, records)
    numbers = {name: float(value) for name, value in found.items() if np.isscalar(value)}
    return numbers, {name: value for name, value in found.items() if name not in numbers}
