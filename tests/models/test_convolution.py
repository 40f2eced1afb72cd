"""Convolutions in forms of our own have the values and gradients of XLA's operation, on one device and on four."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models.convolution import LARGE, convolved
from tljax.models.layers import Conv
from tljax.sharding import batch_sharding, make_mesh, replicated

CASES = {
    "one pixel": ((2, 5, 4, 6), (1, 1), 3, {}),
    "one pixel, stride 2": ((2, 5, 4, 6), (1, 1), 3, dict(stride=(2, 2))),
    "one pixel, padded": ((2, 5, 4, 6), (1, 1), 3, dict(padding=(1, 0))),
    "small": ((2, 6, 7, 3), (3, 3), 4, dict(padding=(1, 1))),
    "large": ((3, 21, 20, 3), (3, 3), 4, dict(padding=(1, 1))),
    "large, stride 2, uneven": ((2, 45, 44, 2), (3, 3), 3, dict(stride=(2, 2), padding=(1, 1))),
    "large, stem": ((2, 46, 42, 3), (7, 7), 4, dict(stride=(2, 2), padding=(3, 3))),
    "large, a line": ((2, 24, 30, 2), (1, 3), 3, dict(padding=(0, 1))),
    "large, without padding": ((2, 26, 23, 2), (4, 2), 3, dict(stride=(1, 1))),
    "dilated": ((2, 24, 24, 2), (3, 3), 3, dict(padding=(2, 2), dilation=2)),
    "groups": ((2, 24, 24, 4), (3, 3), 6, dict(padding=(1, 1), groups=2)),
    "depthwise": ((2, 9, 7, 4), (3, 3), 4, dict(padding=(1, 1), groups=4)),
}


def xlas(x, kernel, *, stride=(1, 1), padding=(0, 0), groups=1, dilation=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def drawn(name):
    """(x, kernel, options)."""
    shape, size, out, options = CASES[name]
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(*size, shape[-1] // options.get("groups", 1), out))
    return jnp.asarray(generator.normal(size=shape), jnp.float32), jnp.asarray(kernel, jnp.float32), options


def with_gradients(run, x, kernel):
    """(value, gradient by x, gradient by the kernel), of a weighted sum."""

    def total(x, kernel):
        y = run(x, kernel)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, kernel)
    return y, *gradients


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_xlas(name):
    x, kernel, options = drawn(name)
    found = with_gradients(partial(convolved, **options), x, kernel)
    expected = with_gradients(partial(xlas, **options), x, kernel)
    assert ("large" in name) <= (found[0].shape[1] * found[0].shape[2] >= LARGE)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


def test_depthwise_convolutions_equal_xlas():
    generator = np.random.default_rng(2)
    x = jnp.asarray(generator.normal(size=(2, 9, 7, 4)), jnp.float32)
    for size, stride, padding in (((3, 3), 1, 1), ((5, 3), 2, (2, 0)), ((1, 2), (2, 1), 0)):
        layer = Conv(4, size, stride, padding, groups=4)
        kernel = jnp.asarray(generator.normal(size=(*size, 1, 4)), jnp.float32)
        pad = padding if isinstance(padding, tuple) else (padding, padding)
        expected = partial(
            jax.lax.conv_general_dilated,
            window_strides=stride if isinstance(stride, tuple) else (stride, stride),
            padding=[(p, p) for p in pad],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )
        found = lambda x, kernel, layer=layer: layer.apply({"params": {"kernel": kernel}}, x)  # noqa: E731
        values, pullbacks = zip(*(jax.vjp(run, x, kernel) for run in (found, expected)), strict=True)
        assert np.allclose(*values, atol=1e-5)
        gradient = jnp.asarray(generator.normal(size=values[0].shape), jnp.float32)
        for mine, theirs in zip(*(pullback(gradient) for pullback in pullbacks), strict=True):
            assert np.allclose(mine, theirs, atol=1e-5)


def test_the_layer_passes_its_options_on():
    x = jnp.ones((2, 9, 9, 4))
    layer = Conv(6, (3, 3), stride=2, padding=(1, 0), groups=2, use_bias=True, dilation=2)
    variables = layer.init(jax.random.key(0), x)
    found = layer.apply(variables, x)
    options = dict(stride=(2, 2), padding=(1, 0), groups=2, dilation=2)
    np.testing.assert_allclose(found, xlas(x, variables["params"]["kernel"], **options), atol=1e-5)


@pytest.mark.parametrize("name", ["large", "one pixel, stride 2", "depthwise"])
def test_a_batch_on_four_devices_gives_the_gradients_of_one(name):
    x, kernel, options = drawn(name)
    x = jnp.concatenate([x, x[::-1], x, x[::-1]])
    mesh = make_mesh(data=4)
    spread, held = jax.device_put(x, batch_sharding(mesh)), jax.device_put(kernel, replicated(mesh))
    found = with_gradients(partial(convolved, **options), spread, held)
    for ours, theirs in zip(found, with_gradients(partial(convolved, **options), x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


def test_half_precision_stays_and_sums_in_float32():
    x, kernel, options = drawn("large")
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y, by_x, by_kernel = with_gradients(partial(convolved, **options), x, kernel)
    assert {y.dtype, by_x.dtype, by_kernel.dtype} == {jnp.dtype("bfloat16")}
    expected = with_gradients(partial(xlas, **options), x.astype(jnp.float32), kernel.astype(jnp.float32))[2]
    np.testing.assert_allclose(by_kernel.astype(jnp.float32), expected, rtol=0.03, atol=0.3)
