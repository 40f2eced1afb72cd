"""What a training step changes, and the split of a parameter tree into live and frozen leaves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax.base.paths import flatten, unflatten


class State(NamedTuple):
    """Everything that a step renews; donated to it. Frozen leaves are an argument of their own.

    Attributes:
      step: steps done, int32.
      live: {slash path: float32 master}.
      batch_stats: running statistics.
      method: the state of the method.
      optimizer: the state of the optimizer, over live leaves alone.
      average: {slash path: moving average of the master}, which is evaluated in its place; {} without one.
      skipped: {"total", "in_a_row"}: the steps that were not finite, int32; {} where such a step stops the run.
    """

    step: Any
    live: dict[str, Any]
    batch_stats: Any
    method: Any
    optimizer: Any
    average: Mapping[str, Any] = {}
    skipped: Mapping[str, Any] = {}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The live leaves as they are evaluated."""
        return {**self.live, **self.average}


def split(params: Mapping[str, Any], live: frozenset[str], compute_dtype: Any) -> tuple[dict, dict]:
    """(live, frozen) flat leaves of `params`, a tree, nested or flat.

    Live leaves become float32 copies: the step donates them, and a donated buffer may have no other owner. Frozen
    floating leaves take the compute dtype once, here, and not in every step.
    """
    flat = flatten(params)
    masters = {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in flat.items() if path in live}
    frozen = {path: cast(leaf, compute_dtype) for path, leaf in flat.items() if path not in live}
    return masters, frozen


def cast(leaf: Any, dtype: Any) -> Any:
    """`leaf` in `dtype` if it is floating; integers stay as they are."""
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def merge(live: Mapping[str, Any], frozen: Mapping[str, Any], compute_dtype: Any) -> dict[str, Any]:
    """The nested tree that a forward pass reads, live leaves cast to the compute dtype."""
    return unflatten({**frozen, **{path: cast(leaf, compute_dtype) for path, leaf in live.items()}})


def first_state(
    live: Mapping[str, Any],
    optimizer: Any,
    *,
    batch_stats: Any,
    method: Any,
    average: bool = False,
    skip: bool = False,
) -> State:
    """The state before the first step; a step donates it, so what others own is copied.

    Args:
      live: masters that nobody else owns.
      optimizer: over them.
      batch_stats: running statistics.
      method: the method's state.
      average: whether an average of the live leaves is kept.
      skip: whether steps that are not finite are skipped, and counted.
    """
    copies = lambda tree: jax.tree.map(lambda x: jnp.array(x, copy=True), tree)  # noqa: E731
    return State(
        step=jnp.zeros((), jnp.int32),
        live=dict(live),
        batch_stats=copies(batch_stats),
        method=method,
        optimizer=optimizer.init(dict(live)),
        average=copies(dict(live)) if average else {},
        skipped={name: jnp.zeros((), jnp.int32) for name in ("total", "in_a_row")} if skip else {},
    )
