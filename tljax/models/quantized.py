"""Frozen kernels of dense layers in 8 or 4 bits. Their leaves stand where the kernel stood:

    …/query/quantized/{int8, scale}                 int8 (in, out) · scale (out,)
    …/query/quantized/{nf4, scale}                  two 4-bit places in a byte (in / 2, out), scale (in / 64, out)
    …/query/quantized/{nf4, scale, second, mean}    as above, with the scales themselves in 8 bits

`Dense` makes the kernel of them each time that it runs, in the dtype of the scales, which is the compute dtype; a
gradient makes it again and keeps nothing of it. Kernels that train cannot be held so.

Dettmers et al. 2023 (QLoRA), arXiv 2305.14314. Not by qwix 0.1.8: it gives the model another class that replaces
functions of jax while it runs, puts objects with static parts among the parameters, where our splits, digests and
shardings expect arrays, and holds each 4-bit place as a `uint4`, which takes a byte on CPU.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

BRANCH = "quantized"
INT8, NF4 = KINDS = ("int8", "nf4")
BLOCK = 64
"""Inputs that share a scale in nf4."""
SECOND = 256
"""Scales of nf4 that share a scale, where they are quantised themselves."""

SHARDING = ((rf".*/{BRANCH}/.*", ()),)
"""For scales: every device has them whole. The values lie as the kernel would, see `kernel_path`."""


def normal_levels() -> np.ndarray:
    """(16,) ascending from -1 to 1: the values of NormalFloat, which a normal distribution uses equally often.

    Quantiles of the normal distribution at even steps, 8 on the negative side and 9 on the positive, both with 0, from
    which they are scaled to 1. How far out they begin is the mean of what 2⁴ and 2⁴ - 1 equal parts of it leave.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    quantiles = lambda count: [NormalDist().inv_cdf(p) for p in np.linspace(outermost, 0.5, count)[:-1]]  # noqa: E731
    values = np.array([*(-q for q in quantiles(8)), 0.0, *reversed(quantiles(9))])
    return (values / values[-1]).astype(np.float32)


LEVELS = normal_levels()


def quantized(kernel: Any, kind: str, *, double: bool = False) -> dict[str, np.ndarray]:
    """The leaves of `kernel` (in, out), in NumPy; those of nf4 need an even number of inputs.

    Args:
      kernel: floating.
      kind: "int8": the largest of each output is 127; "nf4": the largest of each output and 64 inputs is ±1.
      double: of nf4: the scales, less their mean, are int8, with a scale for 256 of them.
    """
    kernel = np.asarray(kernel).astype(np.float32)
    if kind == INT8:
        scale = np.abs(kernel).max(0) / np.float32(127)
        return {"int8": np.round(kernel / _divisor(scale)).astype(np.int8), "scale": scale}
    count, out = kernel.shape
    blocks = np.zeros((-(-count // BLOCK) * BLOCK, out), np.float32)
    blocks[:count] = kernel
    blocks = blocks.reshape(-1, BLOCK, out)
    scale = np.abs(blocks).max(1)
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    places = np.searchsorted(between, (blocks / _divisor(scale)[:, None])).astype(np.uint8).reshape(-1, out)[:count]
    leaves = {"nf4": places[0::2] | places[1::2] << 4, "scale": scale}
    if not double:
        return leaves
    mean = scale.mean(dtype=np.float32)
    parts = np.zeros(-(-scale.size // SECOND) * SECOND, np.float32)
    parts[: scale.size] = (scale - mean).reshape(-1)
    parts = parts.reshape(-1, SECOND)
    second = np.abs(parts).max(1) / np.float32(127)
    places = np.round(parts / _divisor(second)[:, None]).astype(np.int8)
    return {**leaves, "scale": places.reshape(-1)[: scale.size].reshape(scale.shape), "second": second, "mean": mean}


def quantized_shapes(shape: tuple[int, int], kind: str, *, double: bool = False) -> dict[str, tuple[tuple, str]]:
    """(shape, dtype) of each leaf that `quantized` would make of a kernel of this `shape`."""
    count, out = shape
    if kind == INT8:
        return {"int8": (shape, "int8"), "scale": ((out,), "float32")}
    blocks = -(-count // BLOCK)
    found = {"nf4": ((count // 2, out), "uint8"), "scale": ((blocks, out), "int8" if double else "float32")}
    more = {"second": ((-(-blocks * out // SECOND),), "float32"), "mean": ((), "float32")}
    return {**found, **more} if double else found


def _divisor(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(1), scale)


def kernel_of(leaves: Mapping[str, Any]) -> Any:
    """The kernel (in, out) that `leaves` stand for, in the dtype of their scales. NumPy and JAX."""
    if "int8" in leaves:
        return leaves["int8"].astype(leaves["scale"].dtype) * leaves["scale"]
    library = np if isinstance(leaves["nf4"], np.ndarray) else jnp
    scale = leaves["scale"]
    if "second" in leaves:
        each = library.repeat(leaves["second"], SECOND)[: scale.size].reshape(scale.shape)
        scale = scale.astype(each.dtype) * each + leaves["mean"]
    packed = leaves["nf4"]
    places = library.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[-1])
    # From 0 to 15 by the bits above: nothing to check.
    values = LEVELS[places] if library is np else jnp.asarray(LEVELS).at[places].get(mode="promise_in_bounds")
    return values.astype(scale.dtype) * library.repeat(scale, BLOCK, 0)[: len(places)]


def held(module: nn.Module) -> Mapping[str, Any] | None:
    """The leaves that `module` was given in the place of its kernel, or None."""
    return module.get_variable("params", BRANCH) if module.has_variable("params", BRANCH) else None


def kernel_path(path: str) -> str:
    """The path of the kernel in whose place the values at `path` stand; `path` itself for all other leaves."""
    module, branch, name = path.rpartition(f"/{BRANCH}/")
    return f"{module}/kernel" if branch and name in KINDS else path


def with_quantized(flat: Mapping[str, Any], leaves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The flat tree with `leaves` (path of a kernel → its leaves) in the place of these kernels."""
    found: dict[str, Any] = {}
    for path, leaf in flat.items():
        module = path.rpartition("/")[0]
        found |= {f"{module}/{BRANCH}/{k}": v for k, v in leaves[path].items()} if path in leaves else {path: leaf}
    return found


def with_kernels(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The flat tree with kernels, in float32 and NumPy, in the place of their leaves: what the layers compute with."""
    found: dict[str, Any] = {}
    for path, leaf in flat.items():
        module, branch, name = path.rpartition(f"/{BRANCH}/")
        if not branch:
            found[path] = leaf
        elif name in KINDS:
            start = f"{module}/{BRANCH}/"
            mine = {p.removeprefix(start): np.asarray(x) for p, x in flat.items() if p.startswith(start)}
            found[f"{module}/kernel"] = kernel_of(mine).astype(np.float32)
    return found


def parameters(path: str, leaf: Any) -> int:
    """How many numbers of the model the leaf at `path` holds: two in a byte of nf4, and none in a scale."""
    _, branch, name = path.rpartition(f"/{BRANCH}/")
    return leaf.size * ({INT8: 1, NF4: 2}.get(name, 0) if branch else 1)
