"""GPT-2: a decoder with learned positions. Radford, Wu, Child, Luan, Amodei and Sutskever 2019."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Family
from tljax.base.weights import AS_IS, Table, fused, row
from tljax.models import decoders
from tljax.models.adapters import with_parallel
from tljax.models.configs import read_config
from tljax.models.formats import language_model, norm_rows
from tljax.models.layers import ACTIVATIONS, Dense, Embed, LayerNorm, dropout
from tljax.models.resizing import positions_resize, vocabulary_resize
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class Gpt2Config:
    """The entries of config.json that shape a GPT-2, with transformers' names and defaults."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    @property
    def hidden_size(self) -> int:
        """D, by the name that other families have for it."""
        return self.n_embd

    @property
    def max_position_embeddings(self) -> int:
        """How many positions there are, by the name that other families have for it."""
        return self.n_positions

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels and tables start."""
        return nn.initializers.truncated_normal(self.initializer_range)

    @property
    def residual_init(self) -> nn.initializers.Initializer:
        """How kernels start whose result is added to the stream: smaller the more layers add to it."""
        return nn.initializers.truncated_normal(self.initializer_range / (2 * self.n_layer) ** 0.5)


def configure(entries: Mapping[str, Any]) -> Gpt2Config:
    """config.json → `Gpt2Config`; raises `UserError` for what is not implemented."""
    accepted = {"activation_function": ACTIVATIONS, "add_cross_attention": (False,)}
    config = read_config(Gpt2Config, entries, what="GPT-2", accepted=accepted)
    if config.n_embd % config.n_head:
        raise UserError(f"n_embd {config.n_embd} is no multiple of {config.n_head} heads.")
    if config.n_inner is not None and (type(config.n_inner) is not int or config.n_inner < 1):
        raise UserError(f"n_inner is {config.n_inner!r}; it must be a whole number from 1, or null for 4 · n_embd.")
    return config


class Embeddings(nn.Module):
    """Words + positions; the table of words is handed on where the output embedding is tied to it."""

    config: Gpt2Config

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        words = Embed(c.vocab_size, c.n_embd, c.init, name="words")
        x = words(carry["input_ids"])
        x = x + Embed(c.n_positions, c.n_embd, c.init, name="positions")(carry["position_ids"])
        rest = {name: value for name, value in carry.items() if name != "input_ids"}
        tied = {"word_embeddings": words.table()} if c.tie_word_embeddings else {}
        return {**rest, **tied, "hidden": dropout(self, x, c.embd_pdrop, train)}


class Attention(nn.Module):
    """Multi-head attention without norm and residual.

    Attributes:
      stage: under whose name a cache holds the keys and values.
      divisor: of the scores, besides that of their size.
    """

    config: Gpt2Config
    stage: str | None
    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array, carry: dict[str, Any], train: bool) -> tuple[jax.Array, dict[str, Any]]:
        c = self.config
        split = (*x.shape[:-1], c.n_head, -1)
        q, k, v = (
            Dense(c.n_embd, kernel_init=c.init, name=name)(x).reshape(split) for name in ("query", "key", "value")
        )
        factor = (1.0 if c.scale_attn_weights else q.shape[-1] ** 0.5) / self.divisor
        q = q if factor == 1.0 else q * factor
        k, v, carry = decoders.remember(carry, self.stage, k, v)

        def drop(weights: jax.Array) -> jax.Array:
            return dropout(self, weights, c.attn_pdrop, train)

        y = decoders.grouped_attention(q, k, v, decoders.visible(carry), drop=drop, module=self).reshape(x.shape)
        y = Dense(c.n_embd, kernel_init=c.residual_init, name="output")(y)
        return dropout(self, y, c.resid_pdrop, train), carry


class Mlp(nn.Module):
    """Two dense layers without norm and residual."""

    config: Gpt2Config

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        y = Dense(c.n_inner or 4 * c.n_embd, kernel_init=c.init, name="up")(x)
        y = Dense(c.n_embd, kernel_init=c.residual_init, name="down")(ACTIVATIONS[c.activation_function](y))
        return dropout(self, with_parallel(self, x, y), c.resid_pdrop, train)


class Block(nn.Module):
    """One transformer layer, norms before attention and MLP."""

    config: Gpt2Config
    divisor: int

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, x = self.config, carry["hidden"]
        attention = Attention(c, self.name, self.divisor, name="attention")
        y, carry = attention(LayerNorm(c.layer_norm_epsilon, name="attention_norm")(x), carry, train)
        x = x + y
        x = x + Mlp(c, name="mlp")(LayerNorm(c.layer_norm_epsilon, name="mlp_norm")(x), train)
        return {**carry, "hidden": x}


class Norm(LayerNorm):
    """The norm after the last layer, a stage of its own."""

    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        return {**carry, "hidden": super().__call__(carry["hidden"])}


class Gpt2(Tower):
    """`embed, block0 …, norm`."""

    config: Gpt2Config

    def chain(self) -> dict[str, Any]:
        c = self.config
        divisors = range(1, c.n_layer + 1) if c.scale_attn_by_inverse_layer_idx else [1] * c.n_layer
        blocks = {f"block{i}": functools.partial(Block, c, divisor) for i, divisor in enumerate(divisors)}
        norm = functools.partial(Norm, c.layer_norm_epsilon)
        return {"embed": functools.partial(Embeddings, c), **blocks, "norm": norm}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        # The reference reports the last layer after the norm only.
        return (*self.stages[:-2], "norm")

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        return {"embed/words/embedding": ("embed", "head")} if self.config.tie_word_embeddings else {}


def table(config: Gpt2Config, prefix: str) -> Table:
    """transformers' names of a GPT2Model, whose kernels are stored (in, out)."""
    rows = [
        row(f"{prefix}wte.weight", "backbone/embed/words/embedding", AS_IS),
        row(f"{prefix}wpe.weight", "backbone/embed/positions/embedding", AS_IS),
        *norm_rows(f"{prefix}ln_f", "backbone/norm"),
    ]
    for i in range(config.n_layer):
        theirs, ours = f"{prefix}h.{i}", f"backbone/block{i}"
        for part, leaf, axis in (("weight", "kernel", 1), ("bias", "bias", 0)):
            inner = tuple(f"{ours}/attention/{name}/{leaf}" for name in ("query", "key", "value"))
            rows += [
                row(f"{theirs}.attn.c_attn.{part}", inner, fused(3, axis=axis, layout=AS_IS)),
                row(f"{theirs}.attn.c_proj.{part}", f"{ours}/attention/output/{leaf}", AS_IS),
                row(f"{theirs}.mlp.c_fc.{part}", f"{ours}/mlp/up/{leaf}", AS_IS),
                row(f"{theirs}.mlp.c_proj.{part}", f"{ours}/mlp/down/{leaf}", AS_IS),
            ]
        rows += norm_rows(f"{theirs}.ln_1", f"{ours}/attention_norm")
        rows += norm_rows(f"{theirs}.ln_2", f"{ours}/mlp_norm")
    return Table(
        rows=tuple(rows),
        aliases={"lm_head.weight": f"{prefix}wte.weight"} if config.tie_word_embeddings else {},
        # The causal masks that transformers once stored, and heads that nobody asked for.
        extras=(
            r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
            r"(lm_head|score|classifier|multiple_choice_head|qa_outputs)\..*",
        ),
    )


def _size(width: int, layers: int, heads: int) -> dict[str, int]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads}


FAMILY = Family(
    name="gpt2",
    configure=configure,
    backbone=Gpt2,
    carry=decoders.CARRY,
    start=lambda config, inputs: decoders.start(inputs, what="GPT-2", positions=config.n_positions),
    finish=lambda config, carry: decoders.finish(carry),
    inputs=lambda config: {
        key: jax.ShapeDtypeStruct((1, min(8, config.n_positions)), jnp.int32) for key in ("input_ids", "attention_mask")
    },
    table=table,
    prefixes=("transformer.", ""),
    heads={"GPT2LMHeadModel": language_model("GPT2LMHeadModel", prefix="transformer.")},
    own_pool="last",
    sharding=(
        (r"backbone/embed/words/embedding", ("tensor", "fsdp")),
        (r"backbone/embed/positions/embedding", (None, "fsdp")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
        (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={
        "gpt2": _size(768, 12, 12),
        "gpt2-medium": _size(1024, 24, 16),
        "gpt2-large": _size(1280, 36, 20),
        "gpt2-xl": _size(1600, 48, 25),
        # Sanh et al. 2019, every other layer.
        "distilgpt2": _size(768, 6, 12),
    },
    resizes={
        "vocab_size": vocabulary_resize("backbone/embed/words/embedding"),
        "n_positions": positions_resize("backbone/embed/positions/embedding", "n_positions"),
    },
    cache=lambda config, batch, length, dtype: decoders.empty_cache(
        config.n_layer, batch, length, config.n_head, config.n_embd // config.n_head, dtype
    ),
)
