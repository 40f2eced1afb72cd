"""Kernels in few bits: the published values, the errors that they must have, and a layer that computes with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.models.adapters import lora_leaves, matmul, merged
from tljax.models.layers import Dense
from tljax.models.quantized import (
    BLOCK,
    LEVELS,
    SECOND,
    kernel_of,
    parameters,
    quantized,
    quantized_shapes,
    with_kernels,
    with_quantized,
)
from tljax.train.step import KEEP_BARRIERS

# Dettmers et al. 2023, appendix E.
PUBLISHED = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634
0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
KINDS = {"int8": {}, "nf4": {}, "nf4 doubly": {"double": True}}


def made(kernel, name):
    return quantized(kernel, name.split()[0], **KINDS[name])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def test_the_sixteen_values_are_the_published_ones():
    np.testing.assert_allclose(LEVELS, [float(x) for x in PUBLISHED.split()], atol=2e-7)


def test_each_value_is_the_nearest_that_its_scale_allows():
    kernel = normal(6 * BLOCK + 10, 7)
    for name in ("int8", "nf4"):
        leaves = made(kernel, name)
        largest = np.abs(kernel).max(0)
        if name == "nf4":
            parts = [np.abs(kernel[i : i + BLOCK]).max(0) for i in range(0, len(kernel), BLOCK)]
            largest = np.repeat(parts, BLOCK, 0)[: len(kernel)]
            np.testing.assert_array_equal(leaves["scale"], parts)
        values = np.arange(-127, 128) / 127 if name == "int8" else LEVELS
        choices = values[:, None, None] * np.broadcast_to(largest, kernel.shape)
        expected = np.abs(choices - kernel).min(0)
        np.testing.assert_allclose(np.abs(kernel_of(leaves) - kernel), expected, atol=1e-7)


def test_scales_in_eight_bits_cost_little_more():
    kernel = normal(256, 96) * np.random.default_rng(1).uniform(0.5, 2, (256, 1)).astype(np.float32)
    exact, rough = (kernel_of(made(kernel, name)) for name in ("nf4", "nf4 doubly"))
    error = lambda x: np.sqrt(np.mean((x - kernel) ** 2) / np.mean(kernel**2))  # noqa: E731
    assert 0.05 < error(exact) < 0.12 and error(rough) == pytest.approx(error(exact), rel=0.01)
    assert not np.array_equal(exact, rough)
    assert error(kernel_of(made(kernel, "int8"))) < 0.02


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(128, 24), (70, 9)])
def test_the_shapes_are_told_without_the_values(name, shape):
    told = quantized_shapes(shape, name.split()[0], **KINDS[name])
    assert told == {leaf: (value.shape, str(value.dtype)) for leaf, value in made(normal(*shape), name).items()}


def test_zeros_stay_zeros():
    kernel = normal(130, 3) * [[0, 1, 1]]
    kernel[:BLOCK, 1] = 0
    for name in ("int8", "nf4"):
        assert (kernel_of(made(kernel, name))[kernel == 0] == 0).all()


def test_bytes_and_numbers():
    kernel = normal(512, 256)
    share = {name: sum(x.nbytes for x in made(kernel, name).values()) / kernel.nbytes for name in KINDS}
    assert share["int8"] == 1 / 4 + 1 / 512
    assert share["nf4"] == 1 / 8 + 1 / BLOCK
    assert share["nf4 doubly"] == pytest.approx(1 / 8 + 1 / 4 / BLOCK + 1 / BLOCK / SECOND, rel=1e-3)
    for name in KINDS:
        flat = with_quantized(
            {"backbone/up/kernel": kernel, "head/bias": kernel[0]}, {"backbone/up/kernel": made(kernel, name)}
        )
        assert sum(parameters(path, leaf) for path, leaf in flat.items()) == kernel.size + 256


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_computes_with_what_its_leaves_stand_for(name, dora):
    layer, x = Dense(5), jnp.asarray(normal(3, 4, 70, seed=3))
    params = layer.init(jax.random.key(0), x)["params"]
    leaves = made(normal(70, 5), name)
    lora = lora_leaves(jax.random.key(1), jnp.asarray(kernel_of(leaves)), rank=2, scale=0.7, dora=dora)
    lora = {key.removeprefix("lora/"): leaf + 0.1 for key, leaf in lora.items()}
    held = {"bias": params["bias"] + 1, "lora": lora, "quantized": leaves}
    plain = {"bias": params["bias"] + 1, "lora": lora, "kernel": jnp.asarray(kernel_of(leaves))}

    def run(params):
        def loss(x, lora):
            return jnp.sum(jnp.sin(layer.apply({"params": {**params, "lora": lora}}, x)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, lora)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(held), run(plain))
    ordinary = merged({"params": {"backbone": {"up": held}}})["params"]["backbone"]["up"]
    assert ordinary.keys() == {"bias", "kernel"}
    y = layer.apply({"params": held}, x)
    np.testing.assert_allclose(y, layer.apply({"params": ordinary}, x), rtol=1e-4, atol=1e-5)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, held)
    assert layer.apply({"params": low}, x).dtype == jnp.bfloat16


def test_a_tree_without_adapters_has_its_kernels_back():
    kernel = normal(64, 4)
    flat = {"backbone/up/kernel": kernel, "backbone/up/bias": kernel[0]}
    leaves = made(kernel, "nf4")
    held = with_quantized(flat, {"backbone/up/kernel": leaves})
    assert list(held) == ["backbone/up/quantized/nf4", "backbone/up/quantized/scale", "backbone/up/bias"]
    np.testing.assert_array_equal(with_kernels(held)["backbone/up/kernel"], kernel_of(leaves))


def test_a_gradient_keeps_no_kernel():
    width, depth = 128, 8
    leaves = [made(normal(width, width, seed=i), "int8") for i in range(depth)]
    kernels = [kernel_of(each) for each in leaves]

    def memory(kernels):
        def loss(x, kernels):
            for kernel in kernels:
                x = jnp.tanh(matmul(x, kernel))
            return x.sum()

        step = jax.jit(jax.grad(loss), compiler_options=KEEP_BARRIERS["cpu"])
        return step.lower(jnp.ones((4, width)), kernels).compile().memory_analysis().temp_size_in_bytes

    assert memory(leaves) - memory(kernels) < 2 * width * width * 4, "one kernel at a time, and not eight"
