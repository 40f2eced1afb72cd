"""FLOPs of traced programs against counts by hand, and against XLA's for a program without loops."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tljax.assembly.counting import flops

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def count(function, *shapes):
    return flops(jax.make_jaxpr(function)(*shapes))


def test_products_of_matrices_and_their_gradients():
    a, b = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.bfloat16)
    product = 2 * 3 * 4 * 5 * 7
    assert count(jnp.matmul, a, b) == product
    assert count(jax.grad(lambda a, b: jnp.sin(jnp.matmul(a, b)).sum(), (0, 1)), a, b) == 3 * product


def test_a_loop_counts_each_round_and_a_choice_its_costlier_branch():
    def loop(x, w):
        return lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]

    def choice(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert count(loop, SQUARE, SQUARE) == 6 * PRODUCT
    assert count(jax.jit(choice), SQUARE, SQUARE) == 2 * PRODUCT


def test_what_is_computed_again_counts_again():
    def loss(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    # Two products forward; backward one for the inner x and two for w. With a checkpoint both forward ones again.
    assert count(jax.grad(loss, 1), SQUARE, SQUARE) == (2 + 3) * PRODUCT
    assert count(jax.grad(jax.checkpoint(loss), 1), SQUARE, SQUARE) == (2 + 2 + 3) * PRODUCT


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients_as_xla_counts_them(stride):
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((4, 4, 3, 8), jnp.float32)

    def run(x, k):
        return lax.conv_general_dilated(x, k, (stride,) * 2, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    side = (16 - 4) // stride + 1
    forward = 2 * 2 * side**2 * 8 * 4 * 4 * 3
    assert count(run, image, kernel) == forward == jax.jit(run).lower(image, kernel).cost_analysis()["flops"]
    # By the kernel: each pixel of the result meets each of the kernel once.
    assert count(jax.grad(lambda k, x: run(x, k).sum()), kernel, image) == pytest.approx(2 * forward, rel=0.35)
