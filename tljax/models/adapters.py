"""Adapters: small leaves that stand beside a kernel, in the same module, and a side branch that reads them.

    …/query/kernel, bias                    the base, which an adapter leaves alone
    …/query/lora/{a, b, scale}              scale · a · b is added to the kernel; also `magnitude` (DoRA), `dropout`
    …/query/ia3/{input, output}             factors on what goes in, and on what comes out
    …/query/bottleneck/{down, up}/{kernel, bias}    y + up(relu(down(y))), on what comes out
    …/mlp/down/parallel/{down, up, scale}   y + scale · up(relu(down(x))), x what goes into the MLP, y what comes out
    …/{prefix, prompt, visual_prompt}       learned vectors among those of the tokens: `tljax.models.prompts`

The layers of `tljax.models.layers` look for them whenever they run; without them nothing is computed. No kernel is
merged in a step: it would need the gradient of a whole kernel, and (x · a) · b is a small product. `merged` makes an
ordinary tree, for an export.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.models.keys import has_key, next_key
from tljax.models.quantized import kernel_of, with_kernels

LORA, IA3, BOTTLENECK, PARALLEL, PREFIX, PROMPT, VISUAL = NAMES = (
    "lora",
    "ia3",
    "bottleneck",
    "parallel",
    "prefix",
    "prompt",
    "visual_prompt",
)
"""Branches of the tree, in the order in which they act."""

_NONLINEAR = (
    "has a nonlinearity, and no reference class has a place for it. Keep the run: `predict` and `evaluate` use it as "
    "it is. For a model to export, train lora or ia3."
)
UNMERGED = {
    BOTTLENECK: _NONLINEAR,
    PARALLEL: _NONLINEAR,
    PREFIX: "has keys or values of its own, which go into no kernel. Keep the run; for PEFT use `export --adapter`.",
    PROMPT: "has tokens of its own, which go into no kernel. Keep the run; for PEFT use `export --adapter`.",
    VISUAL: "has tokens of its own, which go into no kernel. Keep the run: `predict` and `evaluate` use it as it is.",
}
"""Branches that cannot be merged → why, and what else can be done."""

KERNELS = ("kernel", "embedding")
"""The leaves that an adapter may stand beside."""

DROPOUT = "adapter"
"""The name of the random numbers of the side branches: they are given where a step trains, and nowhere else."""

SHARDING = ((rf".*/({'|'.join(NAMES)})/.*", ()),)
"""Adapters are small: every device has them whole."""


def matmul(x: jax.Array, kernel: jax.Array | Mapping[str, jax.Array]) -> jax.Array:
    """x · kernel over the last axis of x; the kernel may be the leaves of a quantised one.

    As one matrix, not a batch of them: XLA's kernel gradient takes 41 ms from (32, 64, 384) to 1536 on CPU, and 16 from
    (2048, 384).
    """
    if isinstance(kernel, Mapping):
        # No kernel is made before x is there, for all of them would then lie in memory at once; and a gradient of x,
        # which needs the kernel, makes it again, for all of them would be kept from one pass to the other.
        _, leaves = jax.lax.optimization_barrier((jax.lax.stop_gradient(x), dict(kernel)))
        return jax.checkpoint(lambda x, leaves: matmul(x, kernel_of(leaves)))(x, leaves)
    y = x.reshape(-1, x.shape[-1]).astype(kernel.dtype) @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def linear(
    module: nn.Module, x: jax.Array, kernel: Any, bias: jax.Array | None, product: Callable[..., jax.Array]
) -> jax.Array:
    """product(x, kernel) + bias, with the adapters that stand beside the kernel in `module`.

    Args:
      module: a linen module, while it runs.
      x: what `product` takes.
      kernel: (…, out), or what `product` takes in its place: the leaves of a quantised one.
      bias: (out,) or None.
      product: linear in its second argument, of which any last axis will do.

    Returns:
      (…, out), in the dtype of `product`.

    Raises:
      UserError: LoRA or factors on the inputs, beside a convolution in groups, whose kernel does not have all inputs.
    """
    found = beside(module)
    if getattr(module, "groups", 1) > 1 and (LORA in found or "input" in found.get(IA3, {})):
        raise UserError(
            f"{'/'.join(module.path)} is a convolution in {module.groups} groups: its kernel does not have all inputs, "
            "as the adapter would. Leave it out of the targets."
        )
    x = x * found[IA3]["input"].astype(x.dtype) if "input" in found.get(IA3, {}) else x
    y = product(x, kernel)
    if LORA in found:
        lora = found[LORA]
        inner = product(_dropped(module, x, lora), lora["a"]) * lora["scale"]
        side = matmul(inner, lora["b"].reshape(lora["b"].shape[-2:]))
        y = y + side.astype(y.dtype)
        if "magnitude" in lora:
            norm = column_norm(added(kernel_of(kernel) if isinstance(kernel, Mapping) else kernel, lora))
            y = y * (lora["magnitude"].astype(jnp.float32) / norm).astype(y.dtype)
    y = y if bias is None else y + bias
    y = y * found[IA3]["output"].astype(y.dtype) if "output" in found.get(IA3, {}) else y
    return y + _narrow(found[BOTTLENECK], y).astype(y.dtype) if BOTTLENECK in found else y


def _dropped(module: nn.Module, x: jax.Array, lora: Mapping[str, jax.Array]) -> jax.Array:
    """What goes into the side branch: in a training step a share of `lora/dropout` is 0, and the rest scaled up."""
    if "dropout" not in lora or not has_key(module, DROPOUT):
        return x
    keep = 1 - lora["dropout"].astype(jnp.float32)
    kept = jax.random.bernoulli(next_key(module, DROPOUT), keep, x.shape)
    return jnp.where(kept, x / keep, 0).astype(x.dtype)


def with_parallel(mlp: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """What the module `mlp` makes of x, with the parallel adapter beside its kernel `down`, if there is one.

    Args:
      mlp: while it runs; its last layer is `down`.
      x: what goes into its first layer, (…, D).
      y: what comes out of `down`, (…, D).
    """
    found = mlp.get_variable("params", "down", {}).get(PARALLEL)
    return y if found is None else y + (found["scale"] * _narrow(found, x)).astype(y.dtype)


def _narrow(leaves: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """up(relu(down(x)))."""
    down, up = leaves["down"], leaves["up"]
    return matmul(jax.nn.relu(matmul(x, down["kernel"]) + down["bias"]), up["kernel"]) + up["bias"]


def beside(module: nn.Module) -> dict[str, Mapping[str, Any]]:
    """Name → leaves, of the adapters that `module` was given."""
    return {name: module.get_variable("params", name) for name in NAMES if module.has_variable("params", name)}


def added(kernel: Any, lora: Mapping[str, Any]) -> Any:
    """kernel + scale · a · b, in float32, for NumPy and JAX; DoRA's magnitude is left out."""
    a, b = (lora[name].astype(np.float32) for name in ("a", "b"))
    product = a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1])
    return kernel.astype(np.float32) + lora["scale"].astype(np.float32) * product.reshape(kernel.shape)


def column_norm(kernel: Any) -> Any:
    """(…, in, out) → (out,): the length of what leads to each output; never 0, for it divides.

    It has no gradient, as DoRA's authors advise in their section 4.3.
    """
    squares = (kernel * kernel).reshape(-1, kernel.shape[-1]).sum(0)
    norm = (squares + np.finfo(np.float32).tiny) ** 0.5
    return norm if isinstance(norm, np.ndarray) else jax.lax.stop_gradient(norm)


def whole(kernel: Any, found: Mapping[str, Mapping[str, Any]]) -> Any:
    """The kernel with its adapters in it: what the layer computes, but for bias and bottleneck. NumPy and JAX."""
    if LORA in found:
        kernel, lora = added(kernel, found[LORA]), found[LORA]
        if "magnitude" in lora:
            kernel = kernel * (lora["magnitude"].astype(np.float32) / column_norm(kernel))
    if "input" in found.get(IA3, {}):
        kernel = kernel * found[IA3]["input"][:, None]
    return kernel * found[IA3]["output"] if "output" in found.get(IA3, {}) else kernel


def merged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with every adapter in its kernel, in float32, and none beside it; the other leaves as they are.

    Kernels that are held in few bits become what the layers make of them, in float32.

    Raises:
      UserError: bottlenecks, which have a nonlinearity, and prefixes and prompts, which are tokens: neither goes into a
        kernel.
    """
    stored = flatten(variables["params"])
    flat = with_kernels(stored)
    found = adapters_of(flat)
    if not found and flat.keys() == stored.keys():
        return dict(variables)
    faults = {
        kind: f"{module}/{kind} {UNMERGED[kind]}"
        for module in sorted(found, reverse=True)
        for kind in found[module]
        if kind in UNMERGED
    }
    raise_faults("These adapters cannot be merged into the model:", list(faults.values()))
    kept = {path: leaf for path, leaf in flat.items() if not _is_adapter(path)}
    for module, leaves in found.items():
        leaves = jax.tree.map(np.asarray, leaves)
        name = next(f"{module}/{kernel}" for kernel in KERNELS if f"{module}/{kernel}" in flat)
        kept[name] = whole(np.asarray(flat[name]), leaves)
        if "output" in leaves.get(IA3, {}) and f"{module}/bias" in flat:
            kept[f"{module}/bias"] = np.asarray(flat[f"{module}/bias"]) * leaves[IA3]["output"]
    return {**variables, "params": unflatten(kept)}


def adapters_of(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Path of a module → name of an adapter → its leaves, nested."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        if _is_adapter(path):
            parts = path.split("/")
            depth = next(i for i, part in enumerate(parts) if part in NAMES)
            found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = leaf
    return {module: unflatten(leaves) for module, leaves in found.items()}


def _is_adapter(path: str) -> bool:
    return any(f"/{name}/" in path for name in NAMES)


def lora_leaves(
    rng: jax.Array, kernel: jax.Array, *, rank: int, scale: float, dora: bool, dropout: float = 0.0
) -> dict[str, jax.Array]:
    """`lora/a` and `lora/b`, one of which is 0, so that the model starts as it was; see `tljax.strategies.lora`.

    Of a convolution (H, W, in, out), a is (H, W, in, R) and b (1, 1, R, out).
    """
    *inner, count, out = kernel.shape
    a, b = (*inner, count, rank), (*(1 for _ in inner), rank, out)
    leaves = {
        "lora/a": uniform(rng, a),
        "lora/b": jnp.zeros(b),
        "lora/scale": jnp.full((), scale, jnp.float32),
    }
    leaves |= {"lora/dropout": jnp.full((), dropout, jnp.float32)} if dropout else {}
    return {**leaves, "lora/magnitude": column_norm(kernel.astype(jnp.float32))} if dora else leaves


def embedding_lora_leaves(rng: jax.Array, table: jax.Array, **options: Any) -> dict[str, jax.Array]:
    """As `lora_leaves`, for a table of vectors: a is 0 and b random, as in the paper's own code, so that only rows of a
    that some text looks up change."""
    leaves = lora_leaves(rng, table, **options)
    a, b = leaves["lora/a"], leaves["lora/b"]
    return {**leaves, "lora/a": jnp.zeros_like(a), "lora/b": jax.random.normal(rng, b.shape)}


def ia3_leaves(rng: jax.Array, kernel: jax.Array, *, sides: tuple[str, ...]) -> dict[str, jax.Array]:
    """`ia3/input` (in,), `ia3/output` (out,): ones."""
    del rng
    sizes = {"input": kernel.shape[-2], "output": kernel.shape[-1]}
    return {f"ia3/{side}": jnp.ones(sizes[side]) for side in sides}


def bottleneck_leaves(rng: jax.Array, kernel: jax.Array, *, width: int) -> dict[str, jax.Array]:
    """Down to `width` and up again; `up` is 0."""
    return {f"bottleneck/{name}": leaf for name, leaf in _narrow_leaves(rng, kernel.shape[-1], width).items()}


def parallel_leaves(rng: jax.Array, kernel: jax.Array, *, width: int, scale: float) -> dict[str, jax.Array]:
    """Down from what goes into the MLP, which is as wide as what `kernel`, its last, makes; `up` is 0."""
    leaves = {**_narrow_leaves(rng, kernel.shape[-1], width), "scale": jnp.full((), scale, jnp.float32)}
    return {f"parallel/{name}": leaf for name, leaf in leaves.items()}


def _narrow_leaves(rng: jax.Array, out: int, width: int) -> dict[str, jax.Array]:
    return {
        "down/kernel": uniform(rng, (out, width)),
        "down/bias": jnp.zeros(width),
        "up/kernel": jnp.zeros((width, out)),
        "up/bias": jnp.zeros(out),
    }


def uniform(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Between ±1/√fan-in: He et al. 2015 with the slope √5, torch's own start of a linear layer."""
    bound = float(np.prod(shape[:-1])) ** -0.5
    return jax.random.uniform(rng, shape, minval=-bound, maxval=bound)
