"""BERT: a bidirectional text encoder. Devlin et al. 2019."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.weights import AS_IS, LINEAR, Row, Table, row
from tljax.models.layers import ACTIVATIONS, Dense, Embed, LayerNorm, attention, check_activation, dropout
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The entries of config.json that shape a BERT, with transformers' names and defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    add_pooling_layer: bool = True


def configure(entries: Mapping[str, Any]) -> BertConfig:
    """config.json → `BertConfig`; refuses what is not implemented."""
    names = {field.name for field in dataclasses.fields(BertConfig)}
    config = BertConfig(**{name: value for name, value in entries.items() if name in names})
    faults = []
    if entries.get("position_embedding_type", "absolute") != "absolute":
        faults.append(f"position_embedding_type is {entries['position_embedding_type']!r}; only 'absolute' is implemented.")
    faults += [f"{name} is set; BERT as a decoder is not implemented." for name in DECODER if entries.get(name)]
    if config.hidden_size % config.num_attention_heads:
        faults.append(
            f"hidden_size ({config.hidden_size}) is not divisible by num_attention_heads ({config.num_attention_heads})."
        )
    raise_faults("This BERT cannot be built:", faults)
    check_activation(config.hidden_act, "hidden_act")
    return config


DECODER = ("is_decoder", "add_cross_attention")


class Embeddings(nn.Module):
    """Words + positions + token types, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        init = nn.initializers.truncated_normal(c.initializer_range)
        ids = carry["input_ids"]
        x = Embed(c.vocab_size, c.hidden_size, init, name="words")(ids)
        x += Embed(c.max_position_embeddings, c.hidden_size, init, name="positions")(jnp.arange(ids.shape[1]))
        x += Embed(c.type_vocab_size, c.hidden_size, init, name="types")(carry["token_type_ids"])
        x = LayerNorm(c.layer_norm_eps, name="norm")(x)
        return {"mask": carry["mask"], "hidden": dropout(self, x, c.hidden_dropout_prob, train)}


class SelfAttention(nn.Module):
    """Multi-head attention with its residual and norm."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        c = self.config
        dense = functools.partial(Dense, c.hidden_size, kernel_init=nn.initializers.truncated_normal(c.initializer_range))
        heads = (*x.shape[:2], c.num_attention_heads, -1)
        q, k, v = (dense(name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        rate = c.attention_probs_dropout_prob
        drop = functools.partial(dropout, self, rate=rate, train=True) if train and rate else None
        y = dense(name="output")(attention(q, k, v, mask[:, None, None, :] > 0, drop=drop).reshape(x.shape))
        return LayerNorm(c.layer_norm_eps, name="norm")(x + dropout(self, y, c.hidden_dropout_prob, train))


class Mlp(nn.Module):
    """Two dense layers with their residual and norm."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        init = nn.initializers.truncated_normal(c.initializer_range)
        y = ACTIVATIONS[c.hidden_act](Dense(c.intermediate_size, kernel_init=init, name="up")(x))
        y = Dense(c.hidden_size, kernel_init=init, name="down")(y)
        return LayerNorm(c.layer_norm_eps, name="norm")(x + dropout(self, y, c.hidden_dropout_prob, train))


class Block(nn.Module):
    """One transformer layer, norms after the residuals."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = SelfAttention(self.config, name="attention")(carry["hidden"], carry["mask"], train)
        return {**carry, "hidden": Mlp(self.config, name="mlp")(x, train)}


class Pooler(nn.Module):
    """A dense layer and tanh on the first token."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        init = nn.initializers.truncated_normal(self.config.initializer_range)
        x = Dense(self.config.hidden_size, kernel_init=init, name="dense")(carry["hidden"][:, 0])
        return {**carry, "pooled": jnp.tanh(x)}


class Bert(Tower):
    """`embed, block0 …, pooler`."""

    config: BertConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = {f"block{i}": functools.partial(Block, c) for i in range(c.num_hidden_layers)}
        chain = {"embed": functools.partial(Embeddings, c), **blocks}
        return {**chain, "pooler": functools.partial(Pooler, c)} if c.add_pooling_layer else chain

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage != "pooler")


def start(config: BertConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids, mask and token types; the last two have transformers' defaults."""
    ids = inputs["input_ids"]
    if ids.shape[1] > config.max_position_embeddings:
        raise UserError(
            f"An input has {ids.shape[1]} tokens, and the model has {config.max_position_embeddings} positions. Set "
            "max_length of the processor, or adapt max_position_embeddings."
        )
    mask, types = inputs.get("attention_mask"), inputs.get("token_type_ids")
    return {
        "input_ids": ids,
        "mask": jnp.ones_like(ids) if mask is None else mask,
        "token_type_ids": jnp.zeros_like(ids) if types is None else types,
    }


def finish(config: BertConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled (B, D) or None, mask (B, T)."""
    return {"hidden": carry["hidden"], "pooled": carry.get("pooled"), "mask": carry["mask"]}


def table(config: BertConfig, prefix: str) -> Table:
    """transformers' names of a BertModel."""
    rows = [
        row(f"{prefix}embeddings.{theirs}.weight", f"backbone/embed/{ours}/embedding", AS_IS)
        for theirs, ours in (
            ("word_embeddings", "words"),
            ("position_embeddings", "positions"),
            ("token_type_embeddings", "types"),
        )
    ]
    rows += _norm(f"{prefix}embeddings.LayerNorm", "backbone/embed/norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"backbone/block{i}"
        for name in ("query", "key", "value"):
            rows += _dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        rows += _dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += _norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention/norm")
        rows += _dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        rows += _dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
        rows += _norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp/norm")
    if config.add_pooling_layer:
        rows += _dense(f"{prefix}pooler.dense", "backbone/pooler/dense")
    return Table(
        rows=tuple(rows),
        extras=(r"(bert\.)?embeddings\.position_ids", r"cls\..*", r"(classifier|qa_outputs)\..*"),
        renames=((r"(.*LayerNorm)\.gamma", r"\1.weight"), (r"(.*LayerNorm)\.beta", r"\1.bias")),
    )


def _dense(theirs: str, ours: str) -> list[Row]:
    return [row(f"{theirs}.weight", f"{ours}/kernel", LINEAR), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [row(f"{theirs}.weight", f"{ours}/scale", AS_IS), row(f"{theirs}.bias", f"{ours}/bias", AS_IS)]
