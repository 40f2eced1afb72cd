"""The stages of wav2vec 2.0 (see `tljax.models.wav2vec2`): feature encoder, projection, positions, transformer."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.models.keys import next_key
from tljax.models.layers import ACTIVATIONS, Dense, LayerNorm, Mlp, SelfAttention, dropout

ENCODER_EPSILON = 1e-5
"""Of the norms in the feature encoder; config.json does not say it."""

TAPS = 16
"""Taps of the positional convolution that are taken at a time."""


class WaveConv(nn.Module):
    """A convolution over time without padding; kernel (taps, in, out)."""

    features: int
    taps: int
    stride: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # He et al. 2015, with the fan of the forward pass.
        start = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", start, (self.taps, x.shape[-1], self.features))
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype), kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else y


class ChannelNorm(nn.Module):
    """Each channel of (B, T, C) normalised over its own time, in float32: a group norm with a group a channel.

    Wu and He 2018. Padding at the end takes part, as in the reference.
    """

    epsilon: float = ENCODER_EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=1, keepdims=True) + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


class FeatureConv(nn.Module):
    """A layer of the feature encoder: convolution, norm where there is one, activation."""

    config: Any
    layer: int

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, i = self.config, self.layer
        x = carry["hidden"][..., None] if i == 0 else carry["hidden"]
        x = WaveConv(c.conv_dim[i], c.conv_kernel[i], c.conv_stride[i], c.conv_bias, name="conv")(x)
        if c.feat_extract_norm == "layer":
            x = LayerNorm(ENCODER_EPSILON, name="norm")(x)
        elif i == 0:
            x = ChannelNorm(name="norm")(x)
        return {**carry, "hidden": ACTIVATIONS[c.feat_extract_activation](x)}


class Projection(nn.Module):
    """Norm, dense layer to the width of the transformer, and the mask embedding in place of masked frames."""

    config: Any

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, carry = self.config, dict(carry)
        features = LayerNorm(c.layer_norm_eps, name="norm")(carry["hidden"])
        start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        x = dropout(self, Dense(c.hidden_size, kernel_init=start, name="dense")(features), c.feat_proj_dropout, train)
        if c.masks:
            stand_in = self.param("mask_embedding", nn.initializers.uniform(1.0), (c.hidden_size,))
            masked = carry.pop("mask_time_indices", None)
            x = x if masked is None else jnp.where(masked[..., None], stand_in.astype(x.dtype), x)
        return {**carry, "hidden": x, "features": features}


class PositionalConv(nn.Module):
    """A grouped convolution over time, padded to the same length; kernel (taps, in / groups, out).

    The kernel of each tap is divided by its length and multiplied by the tap's `scale` (weight normalisation, Salimans
    and Kingma 2016).
    """

    taps: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        start = nn.initializers.normal(2 * math.sqrt(1 / (self.taps * width)))
        kernel = self.param("kernel", start, (self.taps, width // self.groups, width))
        scale = self.param("scale", lambda key: jnp.sqrt(_square(kernel)))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        factor = scale.astype(jnp.float32) * jax.lax.rsqrt(_square(kernel))
        kernel = (kernel * factor[:, None, None]).astype(kernel.dtype)
        return grouped_conv(x, kernel, self.groups) + bias


def _square(kernel: jax.Array) -> jax.Array:
    """The squared length of each tap's kernel."""
    return jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=(1, 2))


def grouped_conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Convolution over time with `taps // 2` zeros in front, and as many outputs as inputs.

    Args:
      x: (B, T, D).
      kernel: (taps, D / groups, D).
      groups: of channels.

    Returns:
      (B, T, D).
    """
    # Matmuls, a few taps at a time: XLA's own gradient of a grouped convolution on CPU takes 1594 ms for 4 × 49 frames
    # of 768 channels with 128 taps, and this 180; forward both take 50.
    batch, frames, width = x.shape
    taps, inner, _ = kernel.shape
    steps = -(-taps // TAPS)
    kernel = jnp.pad(kernel, ((0, steps * TAPS - taps), (0, 0), (0, 0)))
    kernel = kernel.reshape(steps, TAPS, inner, groups, -1).transpose(0, 3, 1, 2, 4).reshape(steps, groups, -1, inner)
    x = jnp.pad(x, ((0, 0), (taps // 2, steps * TAPS), (0, 0)))
    x = x.reshape(batch, -1, groups, inner).transpose(2, 0, 1, 3)

    @jax.checkpoint
    def add(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, weights = step
        near = jax.lax.dynamic_slice_in_dim(x, first, frames + TAPS - 1, axis=2)
        windows = jnp.concatenate([near[:, :, i : i + frames] for i in range(TAPS)], axis=-1)
        product = jnp.matmul(windows.reshape(groups, batch * frames, -1), weights, preferred_element_type=jnp.float32)
        return total + product, None

    total = jnp.zeros((groups, batch * frames, inner), jnp.float32)
    total, _ = jax.lax.scan(add, total, (jnp.arange(steps) * TAPS, kernel))
    return (
        total.reshape(groups, batch, frames, inner).transpose(1, 2, 0, 3).reshape(batch, frames, width).astype(x.dtype)
    )


class Positions(nn.Module):
    """Zero for padding, plus a convolution of the neighbourhood as the position's embedding; the norm after it.

    Mohamed, Okhonko and Zettlemoyer 2019 use convolutions so.
    """

    config: Any

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        x = jnp.where(carry["mask"][..., None] > 0, carry["hidden"], 0)
        near = PositionalConv(c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups, name="conv")(x)
        x = x + ACTIVATIONS[c.feat_extract_activation](near)
        if not c.do_stable_layer_norm:
            x = LayerNorm(c.layer_norm_eps, name="norm")(x)
        return {**carry, "hidden": dropout(self, x, c.hidden_dropout, train)}


class Block(nn.Module):
    """One transformer layer, which training leaves out now and then for a whole batch (Fan et al. 2019, layer drop)."""

    config: Any

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, before = self.config, carry["hidden"]
        init = nn.initializers.truncated_normal(c.initializer_range)
        common = dict(epsilon=c.layer_norm_eps, pre_norm=c.do_stable_layer_norm, rate=c.hidden_dropout, init=init)
        attend = SelfAttention(
            c.num_attention_heads, qkv_bias=True, attention_rate=c.attention_dropout, name="attention", **common
        )
        x = attend(before, carry["mask"][:, None, None, :] > 0, train)
        mlp = Mlp(c.intermediate_size, c.hidden_act, inner_rate=c.activation_dropout, name="mlp", **common)
        x = mlp(x, train)
        if train and c.layerdrop > 0:
            x = jnp.where(jax.random.bernoulli(next_key(self), c.layerdrop), before, x)
        return {**carry, "hidden": x}


class LastNorm(LayerNorm):
    """The norm after the last block, where the norms stand in front of the residuals."""

    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        return {**carry, "hidden": super().__call__(carry["hidden"])}
