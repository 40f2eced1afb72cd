"""What a score is given: checked on the host, and computed in float64.

Axes: N examples, D width, Y classes of the task, Z classes of the source's head, K targets.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tljax.base.errors import raise_faults

TITLE = "The transferability cannot be scored:"
SUM_TOLERANCE = 1e-2
"""How far a row of probabilities may be from a sum of 1: a softmax in 16 bits is no closer."""


class Labelled(NamedTuple):
    """Rows with their classes.

    Attributes:
      rows: (N, D) or (N, Z), float64.
      labels: (N,), int32, from 0 to `classes` − 1. Each occurs: a class without examples has no part in a score.
      classes: Y.
    """

    rows: np.ndarray
    labels: np.ndarray
    classes: int


def labelled(features: Any, labels: Any) -> Labelled:
    """Features (N, D) of any float type, and integer labels (N,), of which two at least differ.

    Raises:
      UserError: another shape or type, a number that is not finite, or one class only.
    """
    rows, labels = _floats(features), np.asarray(labels)
    raise_faults(TITLE, [*_row_faults("features", rows), *_label_faults(rows, labels)])
    return _renumbered(rows, labels)


def distributed(probabilities: Any, labels: Any) -> Labelled:
    """As `labelled`, of distributions (N, Z) over the source's classes; rows are divided by their sums.

    Raises:
      UserError: as `labelled`, a negative probability, or a row that does not sum to 1.
    """
    rows, labels = _floats(probabilities), np.asarray(labels)
    faults = _row_faults("probabilities", rows)
    if not faults and (rows < 0).any():
        faults = [f"a probability is {rows.min():.3g}. Are they logits?"]
    elif not faults:
        sums = rows.sum(axis=1)
        worst = np.argmax(np.abs(sums - 1))
        faults = [f"row {worst} of the probabilities sums to {sums[worst]:.6g}, not to 1."]
        faults = faults if abs(sums[worst] - 1) > SUM_TOLERANCE else []
    raise_faults(TITLE, [*faults, *_label_faults(rows, labels)])
    return _renumbered(rows / rows.sum(axis=1, keepdims=True), labels)


def targeted(features: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and the targets of a regression, (N,) or (N, K), as (N, D) and (N, K) in float64.

    Raises:
      UserError: another shape, a number that is not finite, or a target that is 0 everywhere.
    """
    rows, columns = _floats(features), _floats(targets)
    columns = columns[:, None] if columns is not None and columns.ndim == 1 else columns
    faults = [*_row_faults("features", rows), *_row_faults("targets", columns)]
    if not faults and len(rows) != len(columns):
        faults.append(f"there are {len(rows)} rows of features and {len(columns)} of targets.")
    elif not faults and not columns.any(axis=0).all():
        faults.append("a target is 0 for every example.")
    raise_faults(TITLE, faults)
    return rows, columns


def _floats(rows: Any) -> np.ndarray | None:
    """`rows` in float64; None where they are no numbers."""
    try:
        return np.asarray(rows).astype(np.float64)
    except (TypeError, ValueError):
        return None


def _row_faults(name: str, rows: np.ndarray | None) -> list[str]:
    if rows is None:
        return [f"the {name} are no numbers."]
    if rows.ndim != 2 or 0 in rows.shape:
        return [f"the {name} have the shape {rows.shape}; they must be a table with a row an example."]
    wrong = np.sum(~np.isfinite(rows))
    return [f"{wrong} of the {name} are not finite."] if wrong else []


def _label_faults(rows: np.ndarray | None, labels: np.ndarray) -> list[str]:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return [f"the labels are {labels.dtype} of shape {labels.shape}; they must be integers, one an example."]
    if rows is not None and rows.ndim == 2 and len(rows) != len(labels):
        return [f"there are {len(labels)} labels of {len(rows)} examples."]
    return [] if len(np.unique(labels)) > 1 else ["the labels have fewer than two classes."]


def _renumbered(rows: np.ndarray, labels: np.ndarray) -> Labelled:
    classes, numbers = np.unique(labels, return_inverse=True)
    return Labelled(rows, numbers.astype(np.int32), len(classes))


def in_float64(*static: str) -> Callable[[Callable], Callable]:
    """Compiles a function, whose arrays are then of 64 bits, whatever JAX is set to outside.

    A Gram matrix has the squares of the singular values of its rows. In float32 it would lose half of the digits that
    the features have; float64 has twice the digits of float32, so that nothing is lost and no singular value
    decomposition is needed, which costs several times as much. Where the accelerator has no float64 the CPU is used.

    Args:
      static: names of arguments that are no arrays.
    """

    def decorate(function: Callable) -> Callable:
        compiled = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            device = None if jax.default_backend() in ("cpu", "gpu") else jax.devices("cpu")[0]
            with jax.enable_x64(True), jax.default_device(device):
                return compiled(*args, **options)

        return run

    return decorate
