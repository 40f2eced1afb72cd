"""Layers in tljax's form, against XLA's and jax's own; and XLA's matrix product, against PyTorch's.

    python -m benchmarks.layers [--only dropout] [--rounds 7] [--any-load]

All in float32. Convolutions: (4, 80, 80, 48) with a depthwise kernel of 3 × 3, and two layers of ResNet-50 at 224
pixels and a batch of 8, (8, 56, 56, 256) → 64 by one pixel and (8, 56, 56, 64) → 64 by 3 × 3. Batch norm is that of
(8, 56, 56, 256), against its formula differentiated by jax. Dropout is that of attention weights (32, 12, 64, 64),
rate 0.1, by the generator of `tljax.base.randomness` against jax's two. The gradient of a kernel is that of a probe
with 6 classes on (5452, 384), as a row a class against a column a class. Attention is that of 8 images in ViT-S, (8,
197, 6, 64), against the same with jax's softmax. The product is of (2048, 384) and (384, 1536); the products of a block
are all 24 that a step of ViT-S makes in one of its 12 blocks for 8 images, both gradients of each among them. Results
go to benchmarks/results/layers.jsonl.
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
    f"attention, {BOTH}": 1.0,
    "matrix product": 1.0,
    "products of a block": 1.0,
}
"""Workload → the ratio to reach; 1 where the form must only not be slower."""
PEERS = {
    "batch norm": ("differentiated",),
    "dropout": ("threefry2x32", "rbg"),
    "gradient of a kernel": ("columns",),
    "attention": ("differentiated",),
    "matrix product": ("torch",),
    "products of a block": ("torch",),
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
        return torch_products(name)
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


def attention(who: str) -> tuple[Callable, list[Any]]:
    """The value and the gradients by queries, keys and values."""
    import jax

    from tljax.models import layers

    shape = (8, 197, 6, 64)
    if who != "ours":
        layers.softmax = jax.nn.softmax  # this is a process of its own
    return with_gradients(lambda q, k, v: layers.attention(q, k, v)), normal(*[shape] * 4)


PLACES, WIDTH, HIDDEN = 8 * 197, 384, 1536
HEADS, INNER = (8, 6, 197, 64), (8, 6, 197, 197)
DENSE = [(WIDTH, WIDTH)] * 4 + [(WIDTH, HIDDEN), (HIDDEN, WIDTH)]
"""What goes into the dense layers of a block and comes out: query, key, value, output; the two of the MLP."""
PRODUCTS: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]] = {
    "matrix product": [("mk,kn->mn", (2048, 384), (384, 1536))],
    "products of a block": [
        *(("mk,kn->mn", (PLACES, k), (k, n)) for k, n in DENSE),
        *(("mn,kn->mk", (PLACES, n), (k, n)) for k, n in DENSE),
        *(("mk,mn->kn", (PLACES, k), (PLACES, n)) for k, n in DENSE),
        *(("bhqd,bhkd->bhqk", HEADS, HEADS),) * 2,
        *(("bhqk,bhkd->bhqd", INNER, HEADS),) * 2,
        *(("bhqk,bhqd->bhkd", INNER, HEADS),) * 2,
    ],
}
"""Workload → sums and the shapes of both factors. Of a block: the way forward, the gradients by inputs, by kernels.

In attention the scores and the gradient by the shares are products of one kind; so are the outputs and the gradient by
the queries, and the gradients by values and keys.
"""


def products(name: str) -> tuple[Callable, list[Any]]:
    """XLA's, in one program."""
    import jax.numpy as jnp

    given = [normal(a, b) for _, a, b in PRODUCTS[name]]
    return lambda *pairs: [jnp.einsum(s, *pair) for (s, _, _), pair in zip(PRODUCTS[name], pairs, strict=True)], given


def torch_products(name: str) -> Callable[[int], None]:
    """PyTorch's, one after another."""
    import torch

    given = [(sums, *map(torch.tensor, normal(a, b))) for sums, a, b in PRODUCTS[name]]

    def work(count: int) -> None:
        for _ in range(count):
            for each in given:
                torch.einsum(*each)

    return work


OTHERS = {
    "batch norm": batch_norm,
    "dropout": dropout,
    "gradient of a kernel": kernel_gradient,
    "attention": attention,
    **{name: lambda who, name=name: products(name) for name in PRODUCTS},
}


if __name__ == "__main__":
    main()
