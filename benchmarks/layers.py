"""A depthwise convolution as a sum of shifted products, against XLA's own operation.

    python -m benchmarks.layers [--rounds 7] [--any-load]

(4, 80, 80, 48) with a kernel of 3 × 3, float32. Results go to benchmarks/results/layers.jsonl.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.measuring import benchmark

SHAPE, KERNEL = (4, 80, 80, 48), (3, 3, 1, 48)
TARGETS = {"depthwise convolution, forward": 10.0, "depthwise convolution, forward and backward": 4.0}
COUNTS = {"ours": 20, "lax.conv": 5}


def main() -> None:
    benchmark(
        __doc__,
        "benchmarks.layers",
        TARGETS,
        program=program,
        turns=lambda name: (COUNTS, ("lax.conv",)),
        rounds=7,
        packages=("jax", "tljax"),
    )


def program(who: str, workload: str) -> Callable[[int], None]:
    """The convolution, or its value and both gradients."""
    import jax
    import jax.numpy as jnp

    from tljax.models.convolution import depthwise

    def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if who == "ours":
            return depthwise(x, kernel, stride=(1, 1), padding=(1, 1))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=SHAPE[-1]
        )

    generator = np.random.default_rng(0)
    x, kernel = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in (SHAPE, KERNEL))
    if workload.endswith("backward"):
        gradient = jnp.asarray(generator.normal(size=SHAPE), jnp.float32)

        @jax.jit
        def run(x: jax.Array, kernel: jax.Array) -> tuple:
            y, pullback = jax.vjp(convolved, x, kernel)
            return y, pullback(gradient)
    else:
        run = jax.jit(convolved)

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(run(x, kernel))

    return work


if __name__ == "__main__":
    main()
