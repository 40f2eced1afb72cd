"""Layers that the families share: dense, convolution, embedding, norms, attention.

Parameters have flax's names and shapes: dense kernels (in, out), convolutions HWIO, `scale` and `bias`, `embedding`.
The compute dtype is that of the parameters; statistics of norms and the softmax are taken in float32.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.models.adapters import beside, linear, matmul, whole, with_parallel
from tljax.models.convolution import convolved
from tljax.models.keys import next_key
from tljax.models.prompts import after_places, with_prefix, with_prompt
from tljax.models.quantized import held

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # 1 + erf rather than jax.nn.gelu's erfc: forward 1.0 ms against 2.3 for 3 M values on CPU, and torch's own form.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""transformers' names of activations."""

HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015, with the fan of the backward pass, as reference residual networks start."""


class Dense(nn.Module):
    """x @ kernel + bias, over the last axis."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.truncated_normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = held(self) or self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(self, x, kernel, bias, matmul)


class Embed(nn.Module):
    """A table of vectors; `ids` of any shape give (…, features). An id beyond the table gives NaN, not a neighbour."""

    count: int
    features: int
    embedding_init: Callable = nn.initializers.truncated_normal(0.02)

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.param("embedding", self.embedding_init, (self.count, self.features))
        ids = after_places(self, ids)
        y = linear(self, ids, table, None, lambda ids, table: jnp.take(table, ids, axis=0, mode="fill"))
        return with_prompt(self, ids, y)

    def table(self) -> jax.Array:
        """The table, with what its adapters make of it: a tied output layer reads the same vectors."""
        table = self.get_variable("params", "embedding")
        found = beside(self)
        return whole(table, found).astype(table.dtype) if found else table


def computed_once(x: jax.Array) -> jax.Array:
    """`x`, which XLA on CPU would compute again in each operation that reads it; so is its gradient.

    Other platforms are left alone.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@jax.custom_jvp
def gradient_once(x: jax.Array) -> jax.Array:
    """`x`, whose gradient alone is computed once and kept for all that read it.

    The gradient of a residual stream is a chain of sums through the norms of all blocks above. Where each reader
    computes the chain again, a tower of n blocks has some n² norms instead of n (a step of ViT-S takes 1.32 s so, and
    1.17 with this).
    """
    return x


gradient_once.defjvp(lambda x, slope: (*x, computed_once(*slope)))


@jax.custom_jvp
def softmax(scores: jax.Array) -> jax.Array:
    """Over the last axis; where there is a gradient, it and the shares are computed once each.

    Attention of a ViT-S with its gradients takes 18 ms so, and 21 by `jax.nn.softmax` (`python -m benchmarks.layers`).
    """
    return jax.nn.softmax(scores)


@softmax.defjvp
def _softmax_slope(scores: tuple, slope: tuple) -> tuple[jax.Array, jax.Array]:
    shares, slope = computed_once(jax.nn.softmax(*scores)), computed_once(*slope)
    return shares, shares * (slope - jnp.sum(shares * slope, -1, keepdims=True))


class LayerNorm(nn.Module):
    """Normalisation over the last axis, in float32. Ba, Kiros and Hinton 2016."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = gradient_once(x).astype(jnp.float32)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        # Two passes: the mean of squares minus the squared mean cancels badly for large means.
        variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, in float32. Zhang and Sennrich 2019."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = gradient_once(x).astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return scale * y.astype(x.dtype)


class BatchNorm(nn.Module):
    """Normalisation over batch and space, as torch does it. Ioffe and Szegedy 2015.

    In training mode the batch's biased variance normalises, and the unbiased one moves the running variance (flax's
    own layer moves it by the biased one, and weighs old and new the other way round). Without `use_scale` there is no
    factor on the result.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,)) if self.use_scale else jnp.ones(features)
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        if not train:
            variance = running_var.value.astype(jnp.float32)
            y = (x.astype(jnp.float32) - running_mean.value) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
            return y.astype(x.dtype)
        y, mean, variance = normalised_by_batch(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // features
            self._move(running_mean, mean)
            self._move(running_var, variance * (count / max(count - 1, 1)))
        return y.astype(x.dtype)

    def _move(self, running: nn.Variable, new: jax.Array) -> None:
        old = running.value
        running.value = ((1 - self.momentum) * old + self.momentum * new).astype(old.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalised_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x (…, C) normalised over all axes but the last, times `scale`, plus `bias`; mean; biased variance), in float32.

    Its gradient is written out: two sums over x and the gradient, and one pass that uses them. On a CPU that takes
    less time than what differentiating each operation gives (`python -m benchmarks.layers`, batch norm).
    """
    return _normalised_forward(x, scale, bias, epsilon)[0]


def _normalised_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[tuple, tuple]:
    y, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(y, axes)
    variance = jnp.mean(jnp.square(y - mean), axes)
    y = (y - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _normalised_backward(epsilon: float, kept: tuple, gradients: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, variance = kept
    gradient, by_mean, by_variance = gradients
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centred, inverse = x.astype(jnp.float32) - mean, jax.lax.rsqrt(variance + epsilon)
    total, product = jnp.sum(gradient, axes), jnp.sum(gradient * centred, axes)
    factor = inverse * scale
    by_x = (
        factor * gradient
        + centred * ((2 * by_variance - factor * jnp.square(inverse) * product) / count)
        + (by_mean - factor * total) / count
    )
    return by_x.astype(x.dtype), (product * inverse).astype(scale.dtype), total.astype(bias.dtype)


normalised_by_batch.defvjp(_normalised_forward, _normalised_backward)


def max_pool(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> jax.Array:
    """The maximum over windows of (B, H, W, C); of equal values the first of a window, row by row, has the gradient.

    The values of `flax.linen.max_pool`, and its gradient, for small windows: each pixel of one is a slice. On a CPU
    core, 3×3 windows with stride 2 of (180, 31, 31, 64) and the way back take XLA's own operation 316 ms, and this 72.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    counts = [(size - wide) // step + 1 for size, wide, step in zip(x.shape[1:3], window, strides, strict=True)]
    ends = [(count - 1) * step + 1 for count, step in zip(counts, strides, strict=True)]
    most = None
    for i, j in itertools.product(*map(range, window)):
        part = x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        # NaN is greater than all else, as it is in a maximum.
        most = part if most is None else jnp.where((part > most) | jnp.isnan(part), part, most)
    return most


class Conv(nn.Module):
    """A 2-D convolution with torch's symmetric padding; kernel (H, W, in / groups, out)."""

    features: int
    kernel: tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1
    use_bias: bool = False
    kernel_init: Callable = HE_FAN_OUT
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        return linear(self, x, kernel, bias, self._convolved)

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        stride, padding = _pair(self.stride), _pair(self.padding)
        return convolved(x, kernel, stride=stride, padding=padding, groups=self.groups, dilation=self.dilation)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def dropout(module: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """`x` with a share of `rate` set to zero in training, and the rest scaled up."""
    if not train or rate == 0.0:
        return x
    if rate >= 1.0:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(next_key(module), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Any = None,
    *,
    bias: Any = None,
    scale: float | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    module: nn.Module | None = None,
) -> jax.Array:
    """Scaled dot-product attention. Vaswani et al. 2017.

    Args:
      q, k, v: (B, T, N, K).
      mask: broadcastable to (B, N, T, T), true where a key may be seen; None sees all. A row that sees nothing gets the
        mean of the values.
      bias: added to the scores, broadcastable to (B, N, T, T), or None.
      scale: factor on the dot products; None is K ** -0.5.
      drop: dropout of the probabilities, or None.
      module: whose children `key` and `value` made k and v; a prefix beside their kernels goes before k and v.

    Returns:
      (B, T, N, K).
    """
    if module is not None:
        k, v, mask, bias = with_prefix(module, k, v, mask, bias)
    # Batched matmuls and an added mask. On CPU, forward and gradient together, they match or beat both
    # jax.nn.dot_product_attention and the einsum form at every length tried, 16 to 512 tokens (docs/log.md).
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = scores + jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    weights = softmax(scores).astype(v.dtype)
    if drop is not None:
        weights = drop(weights)
    return (weights @ v).transpose(0, 2, 1, 3)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its norm and its residual.

    Attributes:
      heads: N; D must be divisible by it.
      epsilon: of the norm.
      pre_norm: the norm stands before the attention (ViT), not after the residual (BERT).
      qkv_bias: whether query, key and value have biases.
      rate: dropout of the result.
      attention_rate: dropout of the probabilities.
      init: of the kernels.
    """

    heads: int
    epsilon: float
    pre_norm: bool
    qkv_bias: bool
    rate: float
    attention_rate: float
    init: Callable

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        norm = LayerNorm(self.epsilon, name="norm")
        y = norm(x) if self.pre_norm else x
        split = (*x.shape[:-1], self.heads, -1)
        q, k, v = (
            Dense(x.shape[-1], self.qkv_bias, self.init, name=name)(y).reshape(split)
            for name in ("query", "key", "value")
        )

        def drop(weights: jax.Array) -> jax.Array:
            return dropout(self, weights, self.attention_rate, train)

        y = attention(q, k, v, mask, drop=drop, module=self).reshape(x.shape)
        y = dropout(self, Dense(x.shape[-1], kernel_init=self.init, name="output")(y), self.rate, train)
        return x + y if self.pre_norm else norm(x + y)


class Mlp(nn.Module):
    """Two dense layers with their norm and their residual; attributes as for `SelfAttention`.

    Attributes:
      inner_rate: dropout between the two layers.
    """

    hidden: int
    activation: str
    epsilon: float
    pre_norm: bool
    rate: float
    init: Callable
    inner_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = LayerNorm(self.epsilon, name="norm")
        y = norm(x) if self.pre_norm else x
        inner = ACTIVATIONS[self.activation](Dense(self.hidden, kernel_init=self.init, name="up")(y))
        inner = dropout(self, inner, self.inner_rate, train)
        y = with_parallel(self, y, Dense(x.shape[-1], kernel_init=self.init, name="down")(inner))
        y = dropout(self, y, self.rate, train)
        return x + y if self.pre_norm else norm(x + y)
