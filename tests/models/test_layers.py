"""Layers of our own against the library's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models.layers import max_pool

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("window", "strides", "padding", "size"),
    [
        ((3, 3), (2, 2), NONE, (9, 12)),
        ((3, 3), (2, 2), ((0, 1), (0, 0)), (8, 7)),
        ((3, 3), (2, 2), ONE, (8, 7)),
        ((3, 3), (1, 1), ONE, (5, 5)),
        ((2, 2), (2, 2), ((0, 1), (0, 0)), (7, 6)),
        ((2, 3), (1, 2), ((0, 0), (2, 0)), (4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_maxima_and_their_gradients_are_those_of_xla_where_values_are_equal_too(window, strides, padding, size, dtype):
    draw = np.random.default_rng(0)
    pixels = jnp.asarray(draw.integers(-2, 2, (3, *size, 4)), dtype)  # four values: most windows have equal ones
    theirs = lambda x: nn.max_pool(x, window, strides, padding)  # noqa: E731
    wanted = theirs(pixels)
    change = jnp.asarray(draw.normal(size=wanted.shape), dtype)
    pull = lambda f: jax.jit(lambda x, g: (f(x), *jax.vjp(f, x)[1](g)))(pixels, change)  # noqa: E731
    for ours, reference in zip(pull(lambda x: max_pool(x, window, strides, padding)), pull(theirs), strict=True):
        assert ours.dtype == reference.dtype
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(reference, np.float32))


def test_a_maximum_hides_no_nan_and_no_infinity():
    pixels = np.zeros((1, 6, 6, 1), np.float32)
    for place, value in (((0, 0), np.nan), ((1, 5), np.nan), ((5, 5), -np.inf), ((3, 3), np.inf)):
        pixels[0, *place, 0] = value
    found = max_pool(jnp.asarray(pixels), (3, 3), (3, 3))[0, :, :, 0]
    np.testing.assert_array_equal(found, [[np.nan, np.nan], [0, np.inf]])
    all_low = jnp.full((1, 3, 3, 1), -jnp.inf)
    assert max_pool(all_low, (3, 3), (2, 2), ((1, 1), (1, 1))).shape == (1, 2, 2, 1)
    assert (max_pool(all_low, (3, 3), (2, 2), ((1, 1), (1, 1))) == -jnp.inf).all()
