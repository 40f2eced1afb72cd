"""When a loss or a gradient is not finite: what is kept of the step, and finding out where it began.

A step is a function of its checkpoint, its number and the seed, so a run that stopped at one can be taken there again:
`replay` goes on from the checkpoint before it and runs the recorded batch operation by operation.
"""

import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tljax.base.errors import RunError, UserError
from tljax.base.files import write_whole
from tljax.base.processes import first, whole
from tljax.train.records import plain

FOLDER = "diverged"
PACKAGE = Path(__file__).parents[1]
IN_A_ROW = 20
"""Steps that are skipped one after another before the run stops: nothing is learnt any more."""


class Diverged(RunError):
    """The loss or the gradient of `step` is not finite; `metrics` are those of the step."""

    def __init__(self, step: int, metrics: Mapping[str, Any], message: str):
        super().__init__(message)
        self.step, self.metrics = step, metrics


class Found(NamedTuple):
    """Where the first value that is not finite came from.

    Attributes:
      what: "nan" or "inf".
      message: jax's own, with the operation.
      place: `file:line, in function` of the innermost line of ours.
    """

    what: str
    message: str
    place: str


def finite(metrics: Mapping[str, Any]) -> bool:
    """Whether loss and gradient norm of a step are finite; waits for them."""
    return math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["gradient_norm"]))


def keep(workdir: Path, error: Diverged, batches: Iterator[Any]) -> Path:
    """Writes the step's batch and numbers to `diverged/step-N.npz` and `.json`; returns the former's path.

    Args:
      workdir: the run folder.
      error: that stopped the run.
      batches: from that step on.
    """
    folder = Path(workdir) / FOLDER
    path = folder / f"step-{error.step}.npz"
    leaves = jax.tree_util.tree_flatten_with_path(next(batches))[0]
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): whole(leaf) for path, leaf in leaves}
    if not first():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    numbers = plain(jax.tree.map(lambda x: str(float(x)), dict(error.metrics)))
    write_whole(path.with_suffix(".json"), json.dumps({"step": error.step, "metrics": numbers}, indent=2) + "\n")
    return path


def last_kept(workdir: Path) -> int:
    """The number of the newest step that was kept; raises `UserError` where there is none."""
    found = [int(path.stem.removeprefix("step-")) for path in (Path(workdir) / FOLDER).glob("step-*.npz")]
    if not found:
        raise UserError(
            f"{Path(workdir) / FOLDER} holds no step: --debug_nans replays the one at which a run stopped because its "
            "loss was not finite."
        )
    return max(found)


def kept_batch(workdir: Path, step: int, like: Any) -> tuple[Any, bool]:
    """(the recorded batch of `step`, placed as `like`; whether it has the bits of `like`).

    Args:
      workdir: the run folder.
      step: of which a batch was kept.
      like: the batch that the data give for the step now.
    """
    with np.load(Path(workdir) / FOLDER / f"step-{step}.npz") as file:
        arrays = dict(file)
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    if set(names) != set(arrays):
        raise UserError(f"The batch of step {step} was recorded with {sorted(arrays)}; the config gives {names}.")
    kept = [arrays[name] for name in names]
    same = all(x.tobytes() == np.asarray(leaf).tobytes() for x, (_, leaf) in zip(kept, pairs, strict=True))
    leaves = [jax.device_put(x.astype(leaf.dtype), leaf.sharding) for x, (_, leaf) in zip(kept, pairs, strict=True)]
    return jax.tree.unflatten(structure, leaves), same


def locate(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Found | None:
    """Runs one step operation by operation; where its first NaN comes from, else its first infinity, else None."""
    for what, setting in (("nan", jax.debug_nans), ("inf", jax.debug_infs)):
        try:
            with jax.disable_jit(), setting(True):
                jax.block_until_ready(step(state, batch))
        except FloatingPointError as error:
            return Found(what, str(error).splitlines()[0], _place(error))
    return None


def _place(error: BaseException) -> str:
    mine = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(PACKAGE) and frame.filename != __file__
    ]
    if not mine:
        return "an operation outside tljax"
    frame = mine[-1]
    return f"{Path(frame.filename).relative_to(PACKAGE.parent)}:{frame.lineno}, in {frame.name}: {frame.line}"
