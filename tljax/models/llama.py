"""LLaMA and its relatives Mistral, Qwen2 and Qwen3: decoders with rotary positions, RMS norms and gated MLPs.

Touvron et al. 2023 (LLaMA), Jiang et al. 2023 (Mistral 7B), Yang et al. 2024 (Qwen2), Yang et al. 2025 (Qwen3).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Family
from tljax.base.weights import AS_IS, Table, row
from tljax.models import decoders
from tljax.models.adapters import with_parallel
from tljax.models.configs import read_config
from tljax.models.formats import dense_rows, language_model
from tljax.models.layers import ACTIVATIONS, Dense, Embed, RMSNorm, dropout
from tljax.models.llama_variants import VARIANTS
from tljax.models.resizing import vocabulary_resize
from tljax.models.rotary import RopeParameters, read_rope, rotate
from tljax.models.tower import Tower

OPTIONAL = {"num_key_value_heads": 1, "head_dim": 1, "sliding_window": 1, "max_window_layers": 0}
"""Entries that may be null → their least number."""

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The entries of config.json that shape a LLaMA, with transformers' names and defaults."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_dropout: float = 0.0
    rope_parameters: RopeParameters | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels and tables start."""
        return nn.initializers.truncated_normal(self.initializer_range)

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer how many tokens back it sees, itself included; 0 is all."""
        return (0,) * self.num_hidden_layers

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether there are biases on query, key and value; on the attention's output; in the MLP."""
        return self.attention_bias, self.attention_bias, self.mlp_bias

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normalised."""
        return False


@dataclasses.dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """The same of a Mistral."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    @property
    def windows(self) -> tuple[int, ...]:
        return (self.sliding_window or 0,) * self.num_hidden_layers

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return False, False, False


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """The same of a Qwen2."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = 28
    layer_types: tuple[str, ...] | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        window = (self.sliding_window or 0) if self.use_sliding_window else 0
        if self.layer_types is None:
            return tuple(window if i >= (self.max_window_layers or 0) else 0 for i in range(self.num_hidden_layers))
        return tuple(window if kind == "sliding_attention" else 0 for kind in self.layer_types)

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return True, False, False


@dataclasses.dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """The same of a Qwen3."""

    head_dim: int | None = 128

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return self.attention_bias, self.attention_bias, False

    @property
    def head_norms(self) -> bool:
        return True


def configure(entries: Mapping[str, Any], *, cls: type[LlamaConfig], name: str) -> LlamaConfig:
    """config.json → a `cls`; raises `UserError` for what is not implemented."""
    # A null is a value of these, and not the absence of one: a Mistral without a window says so.
    own = {entry: entries[entry] for entry in OPTIONAL if entry in entries}
    stated = {entry: value for entry, value in entries.items() if entry not in own}
    config = read_config(cls, stated, what=name, accepted={"hidden_act": ACTIVATIONS})
    config = dataclasses.replace(config, **{entry: value for entry, value in own.items() if hasattr(config, entry)})
    heads = config.num_attention_heads
    faults = [
        f"{entry} is {value!r}; it must be a whole number from {least}, or null."
        for entry, least in OPTIONAL.items()
        if (value := getattr(config, entry, None)) is not None and (type(value) is not int or value < least)
    ]
    raise_faults(f"This config.json describes no {name} that can be built:", faults)
    shared = config.num_key_value_heads or heads
    size = config.head_dim or config.hidden_size // heads
    if config.head_dim is None and config.hidden_size % heads:
        faults.append(f"hidden_size {config.hidden_size} is no multiple of {heads} heads.")
    if heads % shared:
        faults.append(f"The {heads} query heads are no multiple of the {shared} key and value heads.")
    if size % 2:
        faults.append(f"The heads' size {size} is odd; rotary positions turn pairs.")
    rope, wrong = read_rope(entries, positions=config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        faults += [f"layer_types holds {k!r}. {suggest(k, LAYER_TYPES)}" for k in set(kinds) - set(LAYER_TYPES)]
        if len(kinds) != config.num_hidden_layers:
            faults.append(f"layer_types names {len(kinds)} layers, and there are {config.num_hidden_layers}.")
    raise_faults(f"This config.json describes no {name} that can be built:", faults + wrong)
    return dataclasses.replace(config, num_key_value_heads=shared, head_dim=size, rope_parameters=rope)


class Embeddings(nn.Module):
    """Word vectors alone; handed on where the output embedding is tied to them."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        words = Embed(c.vocab_size, c.hidden_size, c.init, name="words")
        x = words(carry["input_ids"])
        rest = {name: value for name, value in carry.items() if name != "input_ids"}
        tied = {"word_embeddings": words.table()} if c.tie_word_embeddings else {}
        return {**rest, **tied, "hidden": x}


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, without norm and residual."""

    config: LlamaConfig
    stage: str | None
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, carry: dict[str, Any], train: bool) -> tuple[jax.Array, dict[str, Any]]:
        c = self.config
        counts = {"query": c.num_attention_heads, "key": c.num_key_value_heads, "value": c.num_key_value_heads}
        q, k, v = (
            Dense(count * c.head_dim, c.biases[0], c.init, name=name)(x).reshape(*x.shape[:-1], count, c.head_dim)
            for name, count in counts.items()
        )
        if c.head_norms:
            q, k = (RMSNorm(c.rms_norm_eps, name=f"{n}_norm")(y) for n, y in (("query", q), ("key", k)))
        q, k = (rotate(y, carry["position_ids"], c.rope_parameters) for y in (q, k))
        k, v, carry = decoders.remember(carry, self.stage, k, v)

        def drop(weights: jax.Array) -> jax.Array:
            return dropout(self, weights, c.attention_dropout, train)

        y = decoders.grouped_attention(q, k, v, decoders.visible(carry, self.window), drop=drop, module=self)
        y = y.reshape(*x.shape[:-1], -1)
        return Dense(x.shape[-1], c.biases[1], c.init, name="output")(y), carry


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)). Shazeer 2020."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate, up = (Dense(c.intermediate_size, c.biases[2], c.init, name=name)(x) for name in ("gate", "up"))
        y = Dense(x.shape[-1], c.biases[2], c.init, name="down")(ACTIVATIONS[c.hidden_act](gate) * up)
        return with_parallel(self, x, y)


class Block(nn.Module):
    """One transformer layer, norms before attention and MLP."""

    config: LlamaConfig
    window: int

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, x = self.config, carry["hidden"]
        attention = Attention(c, self.name, self.window, name="attention")
        y, carry = attention(RMSNorm(c.rms_norm_eps, name="attention_norm")(x), carry, train)
        x = x + y
        x = x + GatedMlp(c, name="mlp")(RMSNorm(c.rms_norm_eps, name="mlp_norm")(x))
        return {**carry, "hidden": x}


class Norm(RMSNorm):
    """The norm after the last layer, a stage of its own."""

    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        return {**carry, "hidden": super().__call__(carry["hidden"])}


class Llama(Tower):
    """`embed, block0 …, norm`."""

    config: LlamaConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = {f"block{i}": functools.partial(Block, c, w) for i, w in enumerate(c.windows)}
        return {"embed": functools.partial(Embeddings, c), **blocks, "norm": functools.partial(Norm, c.rms_norm_eps)}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        # The reference reports the last layer after the norm only.
        return (*self.stages[:-2], "norm")

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        return {"embed/words/embedding": ("embed", "head")} if self.config.tie_word_embeddings else {}


def table(config: LlamaConfig, prefix: str) -> Table:
    """transformers' names of a LlamaModel."""
    rows = [
        row(f"{prefix}embed_tokens.weight", "backbone/embed/words/embedding", AS_IS),
        row(f"{prefix}norm.weight", "backbone/norm/scale", AS_IS),
    ]
    inner, output, mlp = config.biases
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}layers.{i}", f"backbone/block{i}"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            rows += dense_rows(f"{theirs}.self_attn.{short}_proj", f"{ours}/attention/{name}", bias=inner)
        if config.head_norms:
            rows.append(row(f"{theirs}.self_attn.q_norm.weight", f"{ours}/attention/query_norm/scale", AS_IS))
            rows.append(row(f"{theirs}.self_attn.k_norm.weight", f"{ours}/attention/key_norm/scale", AS_IS))
        rows += dense_rows(f"{theirs}.self_attn.o_proj", f"{ours}/attention/output", bias=output)
        for name in ("gate", "up", "down"):
            rows += dense_rows(f"{theirs}.mlp.{name}_proj", f"{ours}/mlp/{name}", bias=mlp)
        rows.append(row(f"{theirs}.input_layernorm.weight", f"{ours}/attention_norm/scale", AS_IS))
        rows.append(row(f"{theirs}.post_attention_layernorm.weight", f"{ours}/mlp_norm/scale", AS_IS))
    return Table(
        rows=tuple(rows),
        aliases={"lm_head.weight": f"{prefix}embed_tokens.weight"} if config.tie_word_embeddings else {},
        # Buffers of transformers before 4.32, and heads that nobody asked for.
        extras=(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"(lm_head|score|qa_outputs)\..*"),
    )


def _family(name: str, architecture: str, cls: type[LlamaConfig]) -> Family:
    return Family(
        name=name,
        configure=functools.partial(configure, cls=cls, name=name),
        backbone=Llama,
        carry=decoders.CARRY,
        start=lambda config, inputs: decoders.start(inputs, what=name, positions=config.max_position_embeddings),
        finish=lambda config, carry: decoders.finish(carry),
        inputs=lambda config: {
            key: jax.ShapeDtypeStruct((1, min(8, config.max_position_embeddings)), jnp.int32)
            for key in ("input_ids", "attention_mask")
        },
        table=table,
        prefixes=("model.", ""),
        heads={architecture: language_model(architecture, prefix="model.")},
        own_pool="last",
        sharding=(
            (r"backbone/embed/words/embedding", ("tensor", "fsdp")),
            (r"backbone/block\d+/(attention/(query|key|value)|mlp/(gate|up))/kernel", ("fsdp", "tensor")),
            (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
            # Biases exist in some of these models only, and a rule must match.
            (r"backbone/.*/(scale|bias)", (None,)),
        ),
        variants=VARIANTS[name],
        resizes={"vocab_size": vocabulary_resize("backbone/embed/words/embedding")},
        cache=lambda config, batch, length, dtype: decoders.empty_cache(
            config.num_hidden_layers, batch, length, config.num_key_value_heads, config.head_dim, dtype
        ),
    )


FAMILY = _family("llama", "LlamaForCausalLM", LlamaConfig)
MISTRAL = _family("mistral", "MistralForCausalLM", MistralConfig)
QWEN2 = _family("qwen2", "Qwen2ForCausalLM", Qwen2Config)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", Qwen3Config)
