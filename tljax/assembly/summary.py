"""What `inspect` shows: who trains, at what rate, and how many bytes and operations that takes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tljax.assembly.experiment import Experiment
from tljax.models.quantized import parameters
from tljax.train.state import State


def stage_table(
    experiment: Experiment, live: Mapping[str, Any], frozen: Mapping[str, Any], optimizer: Mapping[str, int]
) -> dict[str, Any]:
    """A row a stage, and the sums.

    Args:
      experiment: its stages and rates.
      live: flat leaves.
      frozen: flat leaves.
      optimizer: bytes of optimizer state by live path.

    Returns:
      {"stages": rows, "total": sums}; bytes are per device. What is live is so at the start; `live_at_end` of the sums
      is the parameters that ever are.
    """
    flat = {**frozen, **live}
    groups = [*(f"backbone/{stage}" for stage in experiment.stages), "head", "method"]
    rows = []
    for group in groups:
        mine = [path for path in flat if path.startswith(f"{group}/")]
        if not mine:
            continue
        moving = [path for path in mine if path in live]
        rates = sorted({experiment.plan.rates.get(path, 1.0) for path in moving})
        rows.append(
            {
                "stage": group.removeprefix("backbone/"),
                "parameters": sum(parameters(path, flat[path]) for path in mine),
                "live": sum(flat[path].size for path in moving),
                "rate": rates[0] if len(rates) == 1 else (rates or None),
                "parameter_bytes": sum(_local_bytes(flat[path]) for path in mine),
                "gradient_bytes": sum(_local_bytes(flat[path]) for path in moving),
                "optimizer_bytes": sum(optimizer.get(path, 0) for path in moving),
            }
        )
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name not in ("stage", "rate")}
    ever = experiment.plan.live(max((0, *experiment.plan.changes))) if live else ()
    total["live_at_end"] = sum(leaf.size for path, leaf in flat.items() if path in ever)
    return {"stages": rows, "total": total}


def _local_bytes(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)  # of an array, or of a shape that is placed
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return int(np.prod(shape)) * leaf.dtype.itemsize


def optimizer_bytes(state: State) -> dict[str, int]:
    """Bytes of optimizer state by live path, for state that is kept by leaf."""
    found: dict[str, int] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state.optimizer)[0]:
        names = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey) and k.key in state.live]
        for name in names[-1:]:
            found[name] = found.get(name, 0) + _local_bytes(leaf)
    return found
