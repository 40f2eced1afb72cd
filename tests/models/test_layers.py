"""Layers of our own against the library's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tljax.models.layers import BatchNorm, max_pool, normalised_by_batch

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


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (40, 7)])
@pytest.mark.parametrize("use_scale", [True, False])
def test_batch_norm_and_its_gradients_are_those_of_torch(shape, use_scale):
    rng, width = np.random.default_rng(0), shape[-1]
    x, outer = rng.normal(3.0, 2.0, shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    scale = rng.normal(1.0, 0.5, width).astype(np.float32) if use_scale else np.ones(width, np.float32)
    bias = rng.normal(size=width).astype(np.float32)
    ours = BatchNorm(use_scale=use_scale)
    started = {"mean": jnp.full(width, 0.5), "var": jnp.full(width, 2.0)}

    def loss(params, x):
        y, moved = ours.apply({"params": params, "batch_stats": started}, x, train=True, mutable=["batch_stats"])
        return jnp.vdot(y, outer), (y, moved["batch_stats"])

    params = {"bias": jnp.asarray(bias), **({"scale": jnp.asarray(scale)} if use_scale else {})}
    (_, (y, moved)), (by_params, by_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    theirs = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(width)
    with torch.no_grad():
        for leaf, value in zip(
            (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var),
            (scale, bias, started["mean"], started["var"]),
            strict=True,
        ):
            leaf.copy_(torch.tensor(np.asarray(value)))
    first = torch.tensor(x).movedim(-1, 1).requires_grad_()
    out = theirs(first)
    (out * torch.tensor(outer).movedim(-1, 1)).sum().backward()

    def last(tensor):
        return tensor.detach().movedim(1, -1).numpy()

    np.testing.assert_allclose(y, last(out), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x, last(first.grad), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_params["bias"], theirs.bias.grad, rtol=1e-5, atol=1e-5)
    if use_scale:
        np.testing.assert_allclose(by_params["scale"], theirs.weight.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(moved["var"], theirs.running_var, rtol=1e-5)


def test_statistics_of_a_batch_have_gradients_too():
    # As a loss that reads them asks for, and the gradient of a gradient.
    rng = np.random.default_rng(1)
    x, scale, bias = (jnp.asarray(rng.normal(size=shape)) for shape in ((5, 4, 3), (3,), (3,)))

    def plain(x, scale, bias):
        mean = jnp.mean(x, (0, 1))
        variance = jnp.mean(jnp.square(x - mean), (0, 1))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias, mean, variance

    def value(normalised, *given):
        y, mean, variance = normalised(*given)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(mean) * variance)

    ours, wanted = (
        partial(value, normalised) for normalised in (lambda *given: normalised_by_batch(*given, 1e-3), plain)
    )
    first, second = (jax.grad(each, (0, 1, 2))(x, scale, bias) for each in (ours, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, second)
    twice, wanted_twice = (
        jax.grad(lambda x, each=each: jnp.sum(jnp.square(jax.grad(each)(x, scale, bias))))(x) for each in (ours, wanted)
    )
    np.testing.assert_allclose(twice, wanted_twice, rtol=1e-3, atol=1e-4)
