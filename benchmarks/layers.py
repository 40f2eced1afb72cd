"""Layers in tljax's form, against XLA's and jax's own; and XLA's matrix product, against PyTorch's.

    python -m benchmarks.layers [--only dropout] [--rounds 7] [--any-load]

All in float32. Convolutions: (4, 80, 80, 48) with a depthwise kernel of 3 × 3, and two layers of ResNet-50 at 224
pixels and a batch of 8, (8, 56, 56, 256) → 64 by one pixel and (8, 56, 56, 64) → 64 by 3 × 3. Batch norm is that of
(8, 56, 56, 256), against its formula differentiated by jax. Dropout is that of attention weights (32, 12, 64, 64),
rate 0.1, by the generator of `tljax.base.randomness` against jax's two. The gradient of a kernel is that of a probe
with 6 classes on (5452, 384), as a row a class against a column a class. The product is of (2048, 384) and (384,
1536). Results go to benchmarks/results/layers.jsonl.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import benchmark


class Layer(NamedTuple):
    """Shapes of an input (B, H, W, C) and a kernel (h, w, C / groups, out); the output has the input's H and W."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]

    @property
    def padding(self) -> tuple[int, int]:
        return self.kernel[0] // 2, self.kernel[1] // 2

    @property
    def groups(self) -> int:
        return self.shape[-1] // self.kernel[2]


BOTH = "forward and backward"
LAYERS = {
    "depthwise convolution": Layer((4, 80, 80, 48), (3, 3, 1, 48)),
    "convolution by one pixel": Layer((8, 56, 56, 256), (1, 1, 256, 64)),
    "convolution by 3 × 3": Layer((8, 56, 56, 64), (3, 3, 64, 64)),
}
TARGETS = {
    "depthwise convolution, forward": 10.0,
    f"depthwise convolution, {BOTH}": 4.0,
    f"convolution by one pixel, {BOTH}": 1.0,
    f"convolution by 3 × 3, {BOTH}": 1.0,
    f"batch norm, {BOTH}": 1.0,
    "dropout": 1.0,
    "gradient of a kernel": 1.0,
    "matrix product": 1.0,
}
"""Workload → the ratio to reach; 1 where the form must only not be slower."""
PEERS = {
    "batch norm": ("differentiated",),
    "dropout": ("threefry2x32", "rbg"),
    "gradient of a kernel": ("columns",),
    "matrix product": ("torch",),
}
"""Workload, before its comma → the peers; for the others it is lax.conv."""


def main() -> None:
    def turns(workload: str) -> tuple[dict[str, int], tuple[str, ...]]:
        peers = PEERS.get(workload.partition(",")[0], ("lax.conv",))
        return {"ours": 20, **dict.fromkeys(peers, 5)}, peers

    benchmark(
        __doc__,
        "benchmarks.layers",
        TARGETS,
        program=program,
        turns=turns,
        rounds=7,
        packages=("jax", "tljax", "torch"),
    )


def program(who: str, workload: str) -> Callable[[int], None]:
    """`who` does the workload, compiled once."""
    name, _, passes = workload.partition(", ")
    if who == "torch":
        return torch_product()
    import jax

    function, given = convolution(who, name, passes) if name in LAYERS else OTHERS[name](who)
    run, given = jax.jit(function), jax.device_put(given)

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(run(*given))

    return work


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def convolution(who: str, name: str, passes: str) -> tuple[Callable, list[Any]]:
    """The convolution, or its value and both gradients."""
    import jax

    from tljax.models.convolution import convolved

    layer = LAYERS[name]

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if who == "ours":
            return convolved(x, kernel, padding=layer.padding, groups=layer.groups)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=layer.groups
        )

    x, kernel, gradient = normal(*layer, (*layer.shape[:3], layer.kernel[-1]))
    return (with_gradients(forward), [gradient, x, kernel]) if passes == BOTH else (forward, [x, kernel])


def with_gradients(forward: Callable) -> Callable:
    """(gradient of the value, arguments) → the value and the gradients by all arguments."""
    import jax

    def run(gradient: jax.Array, *given: jax.Array) -> tuple:
        y, pullback = jax.vjp(forward, *given)
        return y, pullback(gradient)

    return run


def batch_norm(who: str) -> tuple[Callable, list[Any]]:
    """The layer in training, its value and all gradients."""
    import jax
    import jax.numpy as jnp

    from tljax.models.layers import normalised_by_batch

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean = jnp.mean(x, (0, 1, 2))
        variance = jnp.mean(jnp.square(x - mean), (0, 1, 2))
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias

    shape = (8, 56, 56, 256)
    forward = plain if who != "ours" else lambda *given: normalised_by_batch(*given, 1e-5)[0]
    return with_gradients(forward), normal(shape, shape, shape[-1:], shape[-1:])


def dropout(who: str) -> tuple[Callable, list[Any]]:
    """Masks drawn and applied, by one key."""
    import jax
    import jax.numpy as jnp

    from tljax.base.randomness import training_key

    key = training_key(0) if who == "ours" else jax.random.key(0, impl=who)
    run = lambda key, x: jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)  # noqa: E731
    return run, [key, *normal((32, 12, 64, 64))]


def kernel_gradient(who: str) -> tuple[Callable, list[Any]]:
    """The gradient of a product of features with a kernel (Y, D), or of one with (D, Y)."""
    import jax

    features, kernel, slopes = normal((5452, 384), (6, 384), (5452, 6))
    if who == "ours":
        run = lambda x, kernel, slopes: jax.vjp(lambda k: x @ k.T, kernel)[1](slopes)[0]  # noqa: E731
        return run, [features, kernel, slopes]
    run = lambda x, kernel, slopes: jax.vjp(lambda k: x @ k, kernel)[1](slopes)[0]  # noqa: E731
    return run, [features, kernel.T.copy(), slopes]


def product(who: str) -> tuple[Callable, list[Any]]:
    """XLA's."""
    return lambda a, b: a @ b, normal((2048, 384), (384, 1536))


def torch_product() -> Callable[[int], None]:
    """PyTorch's."""
    import torch

    a, b = map(torch.tensor, normal((2048, 384), (384, 1536)))

    def work(count: int) -> None:
        for _ in range(count):
            a @ b

    return work


OTHERS = {
    "batch norm": batch_norm,
    "dropout": dropout,
    "gradient of a kernel": kernel_gradient,
    "matrix product": product,
}


if __name__ == "__main__":
    main()
