"""FLOPs of a traced program: those of its matrix products and convolutions, as often as each of them runs.

XLA's count sees the body of a loop once, and of a program for several devices one device's part. This one reads the
program as it was traced: the same on every platform and mesh. What is computed again for want of memory
(`config.train.remat`) counts again. Two FLOPs are a multiplication and an addition.
"""

import math
from typing import Any

import jax


def flops(program: Any) -> float:
    """FLOPs of a jaxpr. A loop of unknown length counts as one round, and a choice as its costlier branch."""
    program = getattr(program, "jaxpr", program)
    return sum(_one(equation) for equation in program.eqns)


def _one(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "scan":
        return params["length"] * flops(params["jaxpr"])
    if name == "cond":
        return max(map(flops, params["branches"]))
    if name == "shard_map":
        return math.prod(params["mesh"].shape.values()) * flops(params["jaxpr"])
    return sum(flops(each) for each in _inside(params))


def _convolution(equation: Any) -> float:
    params = equation.params
    kernel = equation.invars[1].aval.shape
    _, inputs, *places = params["dimension_numbers"].rhs_spec
    products = kernel[inputs] * math.prod(kernel[axis] for axis in places)
    # The zeros that a dilation puts between the pixels are no work.
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * products / math.prod(params["lhs_dilation"])


def _inside(params: Any) -> list[Any]:
    """The programs among an equation's parameters, those that it runs."""
    found = jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    return [each for each in found if hasattr(each, "eqns") or hasattr(each, "jaxpr")]
