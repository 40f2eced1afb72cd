"""Running a model over a whole split, in order, with nothing dropped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.base.processes import agreed, whole
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
      Of several processes each gets all.
    """
    parts, targets, indices = [], [], []
    pending: list[tuple[Any, Mapping[str, Any]]] = []

    def fetch(result, batch):
        index = whole(batch["index"])
        real = index >= 0
        parts.append(jax.tree.map(lambda x: whole(x)[real], result))
        indices.append(index[real])
        if "targets" in batch:
            targets.append(jax.tree.map(lambda x: whole(x)[real], batch["targets"]))

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
    """(numbers, tables) of the task's metrics: tables are what is not a single number (confusion, per class).

    Of several processes the first one measures, and tells the others its numbers, by which all choose: their last bits
    might differ from one machine to another. It alone has tables.
    """
    tables: dict[str, Any] = {}

    def numbers() -> dict[str, float]:
        found = task.metrics(predictions, targets, records)
        single = {name: float(value) for name, value in found.items() if np.isscalar(value)}
        tables.update((name, value) for name, value in found.items() if name not in single)
        return single

    return agreed(numbers), tables
