"""Shapes in the place of arrays: what makes a run describes one, too.

Where the variables of an experiment are `jax.ShapeDtypeStruct`s, so is all that is made of them, with the shardings
that the arrays would have; nothing is computed and no memory taken. So the same functions serve a run and its
description.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from tljax.assembly.experiment import Experiment, build
from tljax.assembly.model import make_model
from tljax.base.errors import UserError
from tljax.base.processes import place

Shape = jax.ShapeDtypeStruct

UNKNOWN_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.UnexpectedTracerError,
)
"""What jax raises where a value is asked for and there is a shape only."""


def are_shapes(tree: Any) -> bool:
    """Whether the leaves of `tree` are shapes and no arrays."""
    return any(isinstance(leaf, Shape) for leaf in jax.tree.leaves(tree))


def made(function: Callable, *trees: Any) -> Any:
    """`function(*trees)`; its shapes, where one of the trees holds shapes."""
    return jax.eval_shape(function, *trees) if are_shapes(trees) else function(*trees)


def put(tree: Any, shardings: Any) -> Any:
    """The leaves of `tree` where `shardings` says: one for all of them, or a tree of them."""
    if not are_shapes(tree):
        return place(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda leaf: shardings, tree)
    return jax.tree.map(lambda x, where: Shape(x.shape, x.dtype, sharding=where), tree, shardings)


def described(config: Mapping[str, Any], *, data_dir: str | None = None, devices: Any = None) -> Experiment:
    """The experiment that `build` would make, with shapes for variables: no weights are read, none are made.

    Args:
      config: the sections of a config.
      data_dir: the folder of raw data.
      devices: those of the mesh, which need not be there; default: those that are.

    Raises:
      UserError: as `build`; something is computed from the values of the weights, which are not there.
    """
    found: list[Experiment] = []

    def run() -> tuple[Any, Any]:
        found[:] = [build(config, data_dir=data_dir, devices=devices, make=lambda *a: make_model(*a, values=False))]
        return found[0].variables, found[0].method_state

    try:
        variables, state = jax.eval_shape(run)
    except UNKNOWN_VALUES as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(
            "This config computes something from the values of the weights before the first step (a classifier from "
            f"names, stored adapters …), and a description knows their shapes only. {type(error).__name__}: {line}"
        ) from error
    return found[0]._replace(variables=variables, method_state=state)
