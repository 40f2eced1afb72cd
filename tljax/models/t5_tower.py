"""The two towers of T5 as one chain of stages, and what its config.json may say. Raffel, Shazeer, Roberts et al. 2020.

The first edition has a plain relu and one table for words in, out and in the decoder; version 1.1 (Shazeer 2020,
"GLU Variants Improve Transformer") has a gated gelu and an output embedding of its own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import raise_faults
from tljax.models import decoders
from tljax.models.adapters import with_parallel
from tljax.models.configs import read_config
from tljax.models.layers import ACTIVATIONS, Dense, Embed, RMSNorm, attention, dropout
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The entries of config.json that shape a T5, with transformers' names and defaults.

    `num_decoder_layers` None is as many as `num_layers`; `decoder_start_token_id` shapes nothing, and tells what a
    target starts with. `has_decoder` is no entry of transformers': it tells an
    encoder that stands alone.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    decoder_start_token_id: int | None = None
    has_decoder: bool = True

    @property
    def hidden_size(self) -> int:
        """D, by the name that other families have for it."""
        return self.d_model

    @property
    def decoder_layers(self) -> int:
        """How many blocks the decoder has."""
        return self.num_decoder_layers or self.num_layers

    @property
    def gated(self) -> bool:
        """Whether the hidden layer of a block is the product of two."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """A key of `ACTIVATIONS`; the reference means the tanh form by its gated gelu."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name

    def normal(self, deviation: float) -> nn.initializers.Initializer:
        """How leaves start."""
        return nn.initializers.normal(self.initializer_factor * deviation)


def configure(entries: Mapping[str, Any]) -> T5Config:
    """config.json → `T5Config`; raises `UserError` for what is not implemented.

    Whether the decoder's output is scaled hangs on `tie_word_embeddings` in files before transformers 5, which writes
    `scale_decoder_outputs` and says of every model that it is tied.
    """
    forms = (*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS))
    tied = entries.get("tie_word_embeddings")
    scaled = entries.get("scale_decoder_outputs", tied is not False)
    given = {**entries, "scale_decoder_outputs": scaled}
    if tied is None or (tied is True and scaled is False):
        given["tie_word_embeddings"] = scaled
    config = read_config(T5Config, given, what="T5", accepted={"feed_forward_proj": forms})
    faults, layers = [], config.num_decoder_layers
    if layers is not None and (type(layers) is not int or layers < 1):
        faults.append(f"num_decoder_layers is {layers!r}; it must be a whole number from 1, or null for num_layers.")
    buckets, far = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if buckets < 4 or far <= buckets // 2:
        faults.append(
            f"relative_attention_num_buckets is {buckets} and relative_attention_max_distance {far}; there must be 4 "
            "buckets or more, and a distance above half their number."
        )
    raise_faults("This config.json describes no T5 that can be built:", faults)
    return config


def bucket(offset: jax.Array, *, bidirectional: bool, buckets: int, far: int) -> jax.Array:
    """The bucket of each relative position: small distances have one each, larger ones share them by their logarithm.

    Args:
      offset: where a key stands minus where its query stands, any shape, integers.
      bidirectional: half of the buckets are for keys after the query; otherwise all those keys share the bucket 0.
      buckets: how many there are.
      far: distances from here on share the last bucket.
    """
    half = buckets // 2 if bidirectional else buckets
    exact = half // 2
    # A table made on the host, in the reference's order of float32 operations: the bounds fall on whole numbers, where
    # another rounding of the logarithm would be another bucket.
    distances = np.arange(far + 1, dtype=np.float32)
    with np.errstate(divide="ignore"):
        large = np.log(distances / np.float32(exact)) / np.float32(np.log(far / exact)) * np.float32(half - exact)
    large = np.minimum(exact + np.maximum(large, 0).astype(np.int32), half - 1)
    table = jnp.asarray(np.where(distances < exact, distances, large).astype(np.int32))
    distance = jnp.abs(offset) if bidirectional else jnp.maximum(-offset, 0)
    place = table[jnp.minimum(distance, far)]
    return place + (offset > 0) * half if bidirectional else place


class Attention(nn.Module):
    """Multi-head attention without norm, residual and scale; the inner width is independent of D."""

    config: T5Config
    bidirectional: bool = True
    owns_positions: bool = False

    def setup(self):
        c, inner = self.config, self.config.num_heads * self.config.d_kv
        self.query = Dense(inner, False, c.normal((c.d_model * c.d_kv) ** -0.5))
        self.key = Dense(inner, False, c.normal(c.d_model**-0.5))
        self.value = Dense(inner, False, c.normal(c.d_model**-0.5))
        self.output = Dense(c.d_model, False, c.normal(inner**-0.5))
        if self.owns_positions:
            self.positions = Embed(c.relative_attention_num_buckets, c.num_heads, c.normal(c.d_model**-0.5))

    def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values (B, S, N, K) of the tokens `x` (B, S, D)."""
        split = (*x.shape[:-1], self.config.num_heads, -1)
        return self.key(x).reshape(split), self.value(x).reshape(split)

    def bias(self, queries: int, keys: int, first: Any) -> jax.Array:
        """(1, N, T, S) to add to the scores, of T queries of which the first stands in slot `first`."""
        c = self.config
        offset = jnp.arange(keys) - (jnp.arange(queries)[:, None] + first)
        places = bucket(
            offset,
            bidirectional=self.bidirectional,
            buckets=c.relative_attention_num_buckets,
            far=c.relative_attention_max_distance,
        )
        return self.positions(places).transpose(2, 0, 1)[None]

    def attend(self, x: jax.Array, k: jax.Array, v: jax.Array, mask: Any, bias: Any, train: bool) -> jax.Array:
        """What the tokens `x` (B, T, D) read, (B, T, D)."""
        c = self.config
        q = self.query(x).reshape(*x.shape[:-1], c.num_heads, -1)
        y = attention(
            q,
            k,
            v,
            mask,
            bias=bias,
            scale=1.0,
            drop=lambda weights: dropout(self, weights, c.dropout_rate, train),
            module=self,
        )
        return dropout(self, self.output(y.reshape(*x.shape[:-1], -1)), c.dropout_rate, train)


class Mlp(nn.Module):
    """Two dense layers, the first gated or not, without norm and residual."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        start, act = c.normal(c.d_model**-0.5), ACTIVATIONS[c.activation]
        y = Dense(c.d_ff, False, start, name="up")(x)
        y = act(Dense(c.d_ff, False, start, name="gate")(x)) * y if c.gated else act(y)
        y = dropout(self, y, c.dropout_rate, train)
        y = Dense(c.d_model, False, c.normal(c.d_ff**-0.5), name="down")(y)
        return dropout(self, with_parallel(self, x, y), c.dropout_rate, train)


class Words(nn.Module):
    """The encoder's embeddings; the table goes on to the decoder, and to a head that is tied to it."""

    config: T5Config

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        words = Embed(c.vocab_size, c.d_model, c.normal(1.0), name="words")
        rest = {name: value for name, value in carry.items() if name != "input_ids"}
        if "encoder_hidden" not in carry:
            rest["hidden"] = dropout(self, words(carry["input_ids"]), c.dropout_rate, train)
        return {**rest, "word_embeddings": words.table()}


class EncoderBlock(nn.Module):
    """Self-attention and MLP, norms before them; the `first` makes the position bias of all."""

    config: T5Config
    first: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "encoder_hidden" in carry:
            return carry
        c, x = self.config, carry["hidden"]
        attend = Attention(c, owns_positions=self.first, name="attention")
        bias = attend.bias(x.shape[1], x.shape[1], 0) if self.first else carry["position_bias"]
        y = RMSNorm(c.layer_norm_epsilon, name="attention_norm")(x)
        x = x + attend.attend(y, *attend.keys(y), carry["mask"][:, None, None] > 0, bias, train)
        x = x + Mlp(c, name="mlp")(RMSNorm(c.layer_norm_epsilon, name="mlp_norm")(x), train)
        return {**carry, "hidden": x, "position_bias": bias}


class EncoderNorm(nn.Module):
    """The norm after the encoder's last block."""

    config: T5Config

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "encoder_hidden" in carry:
            return carry
        x = RMSNorm(self.config.layer_norm_epsilon, name="norm")(carry["hidden"])
        x = dropout(self, x, self.config.dropout_rate, train)
        rest = {name: value for name, value in carry.items() if name != "position_bias"}
        return {**rest, "hidden": x, "encoder_hidden": x}


class DecoderWords(nn.Module):
    """The decoder's embeddings, from the encoder's table."""

    config: T5Config

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "decoder_mask" not in carry:
            return carry
        rest = {name: value for name, value in carry.items() if name != "decoder_input_ids"}
        x = jnp.take(carry["word_embeddings"], carry["decoder_input_ids"], axis=0, mode="fill")
        return {**rest, "hidden": dropout(self, x, self.config.dropout_rate, train)}


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder, and MLP, norms before them; `first` as in the encoder."""

    config: T5Config
    first: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "decoder_mask" not in carry:
            return carry
        c, x, stage = self.config, carry["hidden"], self.name
        attend = Attention(c, bidirectional=False, owns_positions=self.first, name="attention")
        first, slots = carry.get("cache_index", 0), carry["decoder_mask"].shape[1]
        bias = attend.bias(x.shape[1], slots, first) if self.first else carry["decoder_position_bias"]
        y = RMSNorm(c.layer_norm_epsilon, name="attention_norm")(x)
        k, v, carry = decoders.remember(carry, stage, *attend.keys(y))
        causal = jnp.arange(slots) <= jnp.arange(x.shape[1])[:, None] + first
        x = x + attend.attend(y, k, v, causal & (carry["decoder_mask"][:, None, None] > 0), bias, train)
        cross = Attention(c, name="cross")
        k, v, carry = _cross_keys(cross, carry, stage)
        y = RMSNorm(c.layer_norm_epsilon, name="cross_norm")(x)
        x = x + cross.attend(y, k, v, carry["mask"][:, None, None] > 0, None, train)
        x = x + Mlp(c, name="mlp")(RMSNorm(c.layer_norm_epsilon, name="mlp_norm")(x), train)
        return {**carry, "hidden": x, "decoder_position_bias": bias}


def _cross_keys(
    cross: Attention, carry: dict[str, Any], stage: str | None
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Keys and values of the encoder's tokens: out of the cache if they are in it; otherwise made, and kept in it."""
    names = f"cross_{stage}/key", f"cross_{stage}/value"
    cache = carry.get("cache")
    if cache is not None and names[0] in cache:
        return cache[names[0]], cache[names[1]], carry
    k, v = cross.keys(carry["encoder_hidden"])
    return k, v, carry if cache is None else {**carry, "cache": {**cache, names[0]: k, names[1]: v}}


class DecoderNorm(nn.Module):
    """The norm after the decoder's last block."""

    config: T5Config

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "decoder_mask" not in carry:
            return carry
        x = RMSNorm(self.config.layer_norm_epsilon, name="norm")(carry["hidden"])
        rest = {name: value for name, value in carry.items() if name != "decoder_position_bias"}
        return {**rest, "hidden": dropout(self, x, self.config.dropout_rate, train)}


class T5(Tower):
    """`encoder/embed, encoder/block0 …, encoder/norm`, and the same under `decoder/` where there is a decoder."""

    config: T5Config

    def chain(self) -> dict[str, Any]:
        c = self.config
        encoder = {
            "encoder/embed": functools.partial(Words, c),
            **{f"encoder/block{i}": functools.partial(EncoderBlock, c, i == 0) for i in range(c.num_layers)},
            "encoder/norm": functools.partial(EncoderNorm, c),
        }
        if not c.has_decoder:
            return encoder
        return {
            **encoder,
            "decoder/embed": functools.partial(DecoderWords, c),
            **{f"decoder/block{i}": functools.partial(DecoderBlock, c, i == 0) for i in range(c.decoder_layers)},
            "decoder/norm": functools.partial(DecoderNorm, c),
        }

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        # The reference reports the last block of a wing after the norm only.
        c = self.config
        last = {f"encoder/block{c.num_layers - 1}", f"decoder/block{c.decoder_layers - 1}"}
        return tuple(stage for stage in self.stages if stage not in last)

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        c = self.config
        blocks = {"encoder": c.num_layers, "decoder": c.decoder_layers if c.has_decoder else 0}
        leaves = {
            f"{wing}/block0/attention/positions/embedding": tuple(f"{wing}/block{i}" for i in range(count))
            for wing, count in blocks.items()
            if count > 1
        }
        if not c.has_decoder:
            return leaves
        users = ("encoder/embed", "decoder/embed", *(("head",) if c.tie_word_embeddings else ()))
        return {"encoder/embed/words/embedding": users, **leaves}
