"""Stored adapters put into the kernels of their base: one, to switch to it, or several, each with a weight."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tljax.base.errors import raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.types import Model
from tljax.checkpoints.peft_format import load_adapter
from tljax.models.adapters import merged

Weighted = str | os.PathLike | Sequence[str | tuple[str, float]]
"""A folder, or several: each alone, which weighs 1, or with a weight."""


def merge_adapters(model: Model, variables: dict[str, Any], adapters: Weighted) -> dict[str, Any]:
    """`variables` with the sum of what stored adapters change, each times its weight, in the kernels.

    A kernel becomes kernel + Σ weight · (the kernel with the adapter in it − kernel), computed in float32.
    One adapter of weight 1 is that adapter; weights that sum to 1 are a mean; a negative one takes a skill away
    (Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089). Heads in the folders are not read.

    Args:
      model: the base that all were made for.
      variables: of `model`, without adapters.
      adapters: folders in PEFT's format.

    Raises:
      UserError: no list of folders and finite weights; a folder that does not fit the model.
    """
    listed = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    pairs = [each if isinstance(each, (tuple, list)) else (each, 1.0) for each in listed]
    raise_faults(
        "config.model.adapters cannot be used; it is a folder, or a list of folders and of pairs (folder, weight):",
        [f"{pair!r} is neither." for pair in pairs if not _is_pair(pair)],
    )
    before, change = flatten(variables["params"]), {}
    for folder, weight in pairs:
        after = flatten(merged(load_adapter(folder, model, variables, head=False))["params"])
        for path, leaf in after.items():
            if leaf is not before[path]:
                difference = np.asarray(leaf, np.float32) - np.asarray(before[path], np.float32)
                change[path] = change.get(path, 0.0) + np.float32(weight) * difference
    moved = {
        path: (np.asarray(before[path], np.float32) + difference).astype(before[path].dtype)
        for path, difference in change.items()
    }
    return {**variables, "params": unflatten({**before, **moved})}


def _is_pair(pair: Sequence[Any]) -> bool:
    folder, weight = pair if len(pair) == 2 else (None, None)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and np.isfinite(weight)
    return isinstance(folder, (str, os.PathLike)) and bool(number)
