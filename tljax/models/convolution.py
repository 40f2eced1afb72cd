"""Convolutions of images, each in the form that is fastest; the values are those of XLA's own operation.

On a CPU XLA's convolution is quick forward and by its input, and slow by its kernel: a product of one-pixel kernels is
a matrix product, which is four times as fast, and the kernel's gradient of the others is one for each image
(`python -m benchmarks.layers`).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from tljax.models.adapters import matmul

LARGE = 400
"""Pixels of an output from which the kernel's gradient is taken image by image; smaller maps gain nothing."""


def convolved(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """The convolution of x (B, H, W, C) with a kernel (h, w, C / groups, out): (B, H', W', out), in the kernel's dtype.

    Args:
      padding: zeros above and below, left and right.
      groups: of channels; equal in number to C and to `out`, each channel has a kernel of its own.
      dilation: distance between the kernel's pixels.
    """
    x, size, out = x.astype(kernel.dtype), kernel.shape[:2], kernel.shape[-1]
    if dilation == 1 and 1 < groups == x.shape[-1] == out:
        return depthwise(x, kernel, stride=stride, padding=padding)
    if groups == 1 and size == (1, 1) and padding == (0, 0):
        return matmul(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    pixels = math.prod((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[1:3], padding, size, stride, strict=True))
    if groups == 1 and dilation == 1 and pixels >= LARGE:
        return _large(x, kernel, stride, padding)
    return _plain(x, kernel, stride, padding, groups, dilation)


def _plain(
    x: jax.Array,
    kernel: jax.Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    """`_plain`, with a gradient of its own by the kernel."""
    return _plain(x, kernel, stride, padding)


def _large_forward(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[jax.Array, tuple]:
    return _plain(x, kernel, stride, padding), (x, kernel)


def _large_backward(
    stride: tuple[int, int], padding: tuple[int, int], kept: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (by_x,) = jax.vjp(lambda x: _plain(x, kernel, stride, padding), x)[1](gradient)

    def of_patches(x: jax.Array, gradient: jax.Array) -> jax.Array:
        run = partial(_patch_product, size=kernel.shape[:2], stride=stride)
        return _by_image(run, _padded(x, padding), gradient).reshape(kernel.shape)

    def own(x: jax.Array, gradient: jax.Array) -> jax.Array:
        by_kernel = jax.vjp(lambda kernel: _plain(x, kernel, stride, padding), kernel)[1](gradient)[0]
        return by_kernel.astype(jnp.float32)

    by_kernel = jax.lax.platform_dependent(x, gradient, cpu=of_patches, default=own)
    return by_x, by_kernel.astype(kernel.dtype)


_large.defvjp(_large_forward, _large_backward)


def _padded(x: jax.Array, padding: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))


def _patch_product(x: jax.Array, gradient: jax.Array, *, size: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
    """The gradient by the kernel, (h · w · C, out), float32, of x, which has its padding."""
    patches = jnp.concatenate([part for _, part in _parts(x, size, stride)], axis=-1)
    rows = patches.reshape(-1, patches.shape[-1])
    return jnp.matmul(rows.T, gradient.reshape(len(rows), -1), preferred_element_type=jnp.float32)


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int], padding: tuple[int, int]) -> jax.Array:
    """A convolution of every channel with a kernel of its own, (H, W, 1, C), as a sum of shifted products.

    So is its gradient: by x it is such a convolution of the gradient with the kernel turned round, and by the kernel a
    product with ones for each shift. On CPU XLA's own takes 40 times as long forward, and 15 times with the gradient
    (`python -m benchmarks.layers`).
    """
    return _shifted(_padded(x, padding), kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """The depthwise convolution of x, which has its padding."""
    return sum(part * kernel[i, j, 0] for (i, j), part in _parts(x, kernel.shape[:2], stride))


def _parts(x: jax.Array, kernel: Sequence[int], stride: Sequence[int]) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """For each place (i, j) of the kernel, the pixels of x that meet it, (B, rows, columns, C)."""
    ends = [(n - k) // s * s + 1 for n, k, s in zip(x.shape[1:3], kernel, stride, strict=True)]
    for i, j in itertools.product(*map(range, kernel)):
        yield (i, j), x[:, i : i + ends[0] : stride[0], j : j + ends[1] : stride[1]]


def _shifted_forward(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> tuple[jax.Array, tuple]:
    return _shifted(x, kernel, stride), (x, kernel)


def _by_kernel(x: jax.Array, gradient: jax.Array, *, size: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
    """The gradient by the kernel, (H · W, C), float32.

    Sums over all axes but the last are products with ones: XLA's own take several times as long on CPU.
    """
    channels = gradient.shape[-1]
    ones = jnp.ones((1, gradient.size // channels), gradient.dtype)
    parts = [(part * gradient).reshape(-1, channels) for _, part in _parts(x, size, stride)]
    return jnp.concatenate([jnp.matmul(ones, part, preferred_element_type=jnp.float32) for part in parts])


def _by_image(by_kernel: Callable[..., jax.Array], x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The sum of `by_kernel` of one image after another."""

    def add(total: jax.Array, pair: tuple) -> tuple[jax.Array, None]:
        return total + by_kernel(pair[0][None], pair[1][None]), None

    start = jnp.zeros_like(jax.eval_shape(by_kernel, x, gradient))
    return jax.lax.scan(add, start, (x, gradient))[0]


def _shifted_backward(stride: tuple[int, int], kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size = kernel.shape[:2]
    run = partial(_by_kernel, size=size, stride=stride)
    # One image after another stays in a core's cache: 3 ms in the place of 17. Other devices take them at once.
    sums = jax.lax.platform_dependent(x, gradient, cpu=partial(_by_image, run), default=run)
    by_kernel = sums.reshape(kernel.shape).astype(kernel.dtype)
    # Zeros between outputs that stand `stride` apart, around them, and for pixels beyond the last one.
    pads = [(k - 1, k - 1 + (n - k) % s, s - 1) for n, k, s in zip(x.shape[1:3], size, stride, strict=True)]
    wide = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    return _shifted(wide, kernel[::-1, ::-1], (1, 1)).astype(x.dtype), by_kernel


_shifted.defvjp(_shifted_forward, _shifted_backward)
