"""Which kernels of a model are held in few bits, and their leaves."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.types import Model, Quantization
from tljax.models import get_family
from tljax.models.forward import forward
from tljax.models.layers import Dense
from tljax.models.quantized import NF4, kernel_of, quantized, quantized_shapes, with_quantized


def quantized_leaves(
    model: Model, variables: Mapping[str, Any], chosen: Mapping[str, Quantization]
) -> dict[str, dict[str, Any]]:
    """Path of a kernel → the leaves that take its place. Kernels that nobody named and that do not suit stay.

    Raises:
      UserError: kernels that were named and belong to no dense layer, or have no even number of inputs for nf4; none.
    """
    if not chosen:
        return {}
    flat, dense, found, faults = flatten(variables["params"]), _dense_kernels(model, variables), {}, []
    for path, how in chosen.items():
        fault = None if path in dense else "is not the kernel of a layer `tljax.models.layers.Dense`."
        if path in dense and how.kind == NF4 and flat[path].shape[0] % 2:
            fault = f"has {flat[path].shape[0]} inputs, and nf4 puts two into a byte."
        if fault is None:
            found[path] = _held(flat[path], how)
        elif how.named:
            faults.append(f"{path} {fault}")
    raise_faults("These kernels cannot be quantised; leave them out of config.strategy.quantize.targets:", faults)
    if not found:
        raise UserError(f"The blocks of the {model.family} have no kernel of a dense layer for quantize. Drop it.")
    return found


def _held(kernel: Any, how: Quantization) -> dict[str, Any]:
    """The leaves that hold `kernel`; where it is traced, for its shape alone, leaves of the same shapes."""
    if isinstance(kernel, jax.core.Tracer):
        shapes = quantized_shapes(kernel.shape, how.kind, double=how.double)
        return {name: jnp.zeros(*shape) for name, shape in shapes.items()}
    return quantized(kernel, how.kind, double=how.double)


def rounded(
    variables: Mapping[str, Any], held: Mapping[str, Mapping[str, Any]], paths: Iterable[str]
) -> dict[str, Any]:
    """`variables` with those kernels of `paths` that will be exchanged as the layers will see them.

    So adapters begin beside the kernels that they will stand beside.
    """
    seen = {path: kernel_of(held[path]) for path in paths if path in held}
    if not seen:
        return dict(variables)
    return {**variables, "params": unflatten({**flatten(variables["params"]), **seen})}


def exchanged(variables: Mapping[str, Any], held: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`variables` with the leaves of `held` in the place of its kernels."""
    if not held:
        return dict(variables)
    return {**variables, "params": unflatten(with_quantized(flatten(variables["params"]), held))}


def _dense_kernels(model: Model, variables: Mapping[str, Any]) -> frozenset[str]:
    """The paths of the kernels of dense layers that a forward pass of the backbone runs."""
    inputs, found = get_family(model.family).inputs(model.config), set()

    def note(run, arguments, options, context):
        if isinstance(context.module, Dense):
            found.add("/".join(("backbone", *context.module.path, "kernel")))
        return run(*arguments, **options)

    trees = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda tree, inputs: forward(model._replace(head=None), tree, inputs)[0], shapes, dict(inputs))
    return frozenset(found)
