"""Convolutions and dropout in tljax's form, against XLA's and jax's own.

    python -m benchmarks.layers [--rounds 7] [--any-load]

float32. Convolutions: (4, 80, 80, 48) with a depthwise kernel of 3 × 3, and two layers of ResNet-50 at 224 pixels and a
batch of 8, (8, 56, 56, 256) → 64 by one pixel and (8, 56, 56, 64) → 64 by 3 × 3. Dropout is that of attention weights
(32, 12, 64, 64), rate 0.1, by the generator of `tljax.base.randomness` against jax's two. Results go to
benchmarks/results/layers.jsonl.
"""

from collections.abc import Callable
from typing import NamedTuple

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


LAYERS = {
    "depthwise convolution": Layer((4, 80, 80, 48), (3, 3, 1, 48)),
    "convolution by one pixel": Layer((8, 56, 56, 256), (1, 1, 256, 64)),
    "convolution by 3 × 3": Layer((8, 56, 56, 64), (3, 3, 64, 64)),
}
TARGETS = {
    "depthwise convolution, forward": 10.0,
    "depthwise convolution, forward and backward": 4.0,
    "convolution by one pixel, forward and backward": 1.0,
    "convolution by 3 × 3, forward and backward": 1.0,
    "dropout": 1.0,
}
"""Workload → the ratio to reach; 1 where the form must only not be slower."""
WEIGHTS, RATE = (32, 12, 64, 64), 0.1


def main() -> None:
    def turns(workload: str) -> tuple[dict[str, int], tuple[str, ...]]:
        peers = ("threefry2x32", "rbg") if workload == "dropout" else ("lax.conv",)
        return {"ours": 20, **dict.fromkeys(peers, 5)}, peers

    benchmark(
        __doc__,
        "benchmarks.layers",
        TARGETS,
        program=program,
        turns=turns,
        rounds=7,
        packages=("jax", "tljax"),
    )


def program(who: str, workload: str) -> Callable[[int], None]:
    """`who`'s dropout, or convolution, or its value and both gradients."""
    return dropout(who) if workload == "dropout" else convolution(who, workload)


def dropout(who: str) -> Callable[[int], None]:
    """Masks drawn and applied, by one key for each array."""
    import jax
    import jax.numpy as jnp

    from tljax.base.randomness import training_key

    key = training_key(0) if who == "ours" else jax.random.key(0, impl=who)
    x = jnp.asarray(np.random.default_rng(0).normal(size=WEIGHTS), jnp.float32)

    @jax.jit
    def run(key: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0)

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(run(key, x))

    return work


def convolution(who: str, workload: str) -> Callable[[int], None]:
    """The convolution, or its value and both gradients."""
    import jax
    import jax.numpy as jnp

    from tljax.models.convolution import convolved

    name, _, passes = workload.partition(", ")
    layer = LAYERS[name]

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if who == "ours":
            return convolved(x, kernel, padding=layer.padding, groups=layer.groups)
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=layer.groups
        )

    generator = np.random.default_rng(0)
    x, kernel = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in layer)
    if passes.endswith("backward"):
        gradient = jnp.asarray(generator.normal(size=(*layer.shape[:3], layer.kernel[-1])), jnp.float32)

        @jax.jit
        def step(x: jax.Array, kernel: jax.Array) -> tuple:
            y, pullback = jax.vjp(run, x, kernel)
            return y, pullback(gradient)
    else:
        step = jax.jit(run)

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(step(x, kernel))

    return work


if __name__ == "__main__":
    main()
