"""Each example of a batch stays on its devices while a tower runs.

Where the axis `fsdp` splits both the batch and the parameters, a product has two axes that could stay split, and XLA
may choose the parameters': every device then works on the whole batch, and activations are added up over the axis, not
weights gathered. So the state that a stage hands on is said to lie as the batch does, its gradient too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tljax.assembly.reading import sharers
from tljax.sharding import batch_sharding


@contextmanager
def rows_stay(mesh: Mesh | None) -> Iterator[None]:
    """What modules hand on as `hidden` is split by its first axis as the batch is; the other axes are XLA's to choose.

    Without an axis `fsdp` there is nothing to choose, and nothing is said.
    """
    if mesh is None or mesh.shape.get("fsdp", 1) == 1:
        yield
        return
    rows, ways = batch_sharding(mesh).spec[0], sharers(mesh)

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % ways:
            return x
        spec = PartitionSpec(rows, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def placed(run: Any, arguments: Any, options: Any, context: Any) -> Any:
        found = run(*arguments, **options)
        hidden = found.get("hidden") if isinstance(found, Mapping) else None
        given = arguments[0] if arguments and isinstance(arguments[0], Mapping) else {}
        # What a module hands on as it is stays the same object, by which a tower knows that nothing was done to it.
        if context.method_name != "__call__" or hidden is None or hidden is given.get("hidden"):
            return found
        return {**found, "hidden": split(hidden)}

    with nn.intercept_methods(placed):
        yield
