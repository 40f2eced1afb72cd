"""DistilBERT: BERT at half its depth. Sanh, Debut, Chaumond and Wolf 2019, https://arxiv.org/abs/1910.01108."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, Row, Table, row
from tljax.models.configs import read_config
from tljax.models.formats import (
    dense_rows,
    describe_labels,
    label_count,
    norm_rows,
    span_classifier,
    token_classifier,
)
from tljax.models.heads import LanguageModel, MlpClassifier
from tljax.models.layers import ACTIVATIONS, Embed, LayerNorm, Mlp, SelfAttention, dropout
from tljax.models.resizing import positions_resize, vocabulary_resize
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class DistilBertConfig:
    """The entries of config.json that shape a DistilBERT, with transformers' names and defaults."""

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    max_position_embeddings: int = 512
    initializer_range: float = 0.02

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels and tables start."""
        return nn.initializers.truncated_normal(self.initializer_range)

    @property
    def hidden_size(self) -> int:
        """D, under the name that other families have."""
        return self.dim

    @property
    def hidden_act(self) -> str:
        """The activation, under the name that other families have."""
        return self.activation


ACCEPTED = {"activation": ACTIVATIONS, "sinusoidal_pos_embds": (False,), "tie_word_embeddings": (True,)}


def configure(entries: Mapping[str, Any]) -> DistilBertConfig:
    """config.json → `DistilBertConfig`; raises `UserError` for what is not implemented."""
    config = read_config(DistilBertConfig, entries, what="DistilBERT", accepted=ACCEPTED)
    if config.dim % config.n_heads:
        raise UserError(f"dim {config.dim} is no multiple of {config.n_heads} heads.")
    return config


class Embeddings(nn.Module):
    """Words + positions, normalised."""

    config: DistilBertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, ids = self.config, carry["input_ids"]
        words = Embed(c.vocab_size, c.dim, c.init, name="words")
        x = words(ids) + Embed(c.max_position_embeddings, c.dim, c.init, name="positions")(jnp.arange(ids.shape[1]))
        x = dropout(self, LayerNorm(1e-12, name="norm")(x), c.dropout, train)
        return {"mask": carry["mask"], "hidden": x, "word_embeddings": words.table()}


class Block(nn.Module):
    """One transformer layer, norms after the residuals; no dropout of the attention's result."""

    config: DistilBertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        shared = dict(epsilon=1e-12, pre_norm=False, init=c.init)
        rates = dict(rate=0.0, attention_rate=c.attention_dropout)
        attend = SelfAttention(heads=c.n_heads, qkv_bias=True, name="attention", **rates, **shared)
        x = attend(carry["hidden"], carry["mask"][:, None, None, :] > 0, train)
        x = Mlp(c.hidden_dim, c.activation, rate=c.dropout, name="mlp", **shared)(x, train)
        return {**carry, "hidden": x}


class DistilBert(Tower):
    """`embed, block0 …`."""

    config: DistilBertConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = {f"block{i}": functools.partial(Block, c) for i in range(c.n_layers)}
        return {"embed": functools.partial(Embeddings, c), **blocks}

    @property
    def shared(self) -> dict[str, tuple[str, ...]]:
        return {"embed/words/embedding": ("embed", "head")}


def start(config: DistilBertConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids (B, T) and their mask, of ones where it is absent; raises `UserError` for inputs that do not fit."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        raise UserError(f"DistilBERT reads `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    positions = config.max_position_embeddings
    faults = [f"An input has {ids.shape[1]} tokens, and the model has {positions} positions."]
    faults = faults if ids.shape[1] > positions else []
    if mask is not None and mask.shape != ids.shape:
        faults.append(f"attention_mask has the shape {mask.shape}, and input_ids {ids.shape}.")
    raise_faults("These inputs do not fit the model:", faults)
    return {"input_ids": ids, "mask": jnp.ones_like(ids) if mask is None else mask}


def finish(config: DistilBertConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled None, mask (B, T), word_embeddings (V, D)."""
    return {**{name: carry[name] for name in ("hidden", "mask", "word_embeddings")}, "pooled": None}


def table(config: DistilBertConfig, prefix: str) -> Table:
    """transformers' names of a DistilBertModel."""
    rows = [
        row(f"{prefix}embeddings.{name}_embeddings.weight", f"backbone/embed/{name}s/embedding", AS_IS)
        for name in ("word", "position")
    ]
    rows += norm_rows(f"{prefix}embeddings.LayerNorm", "backbone/embed/norm")
    for i in range(config.n_layers):
        theirs, ours = f"{prefix}transformer.layer.{i}", f"backbone/block{i}"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            rows += dense_rows(f"{theirs}.attention.{short}_lin", f"{ours}/attention/{name}")
        rows += norm_rows(f"{theirs}.sa_layer_norm", f"{ours}/attention/norm")
        rows += dense_rows(f"{theirs}.ffn.lin1", f"{ours}/mlp/up") + dense_rows(
            f"{theirs}.ffn.lin2", f"{ours}/mlp/down"
        )
        rows += norm_rows(f"{theirs}.output_layer_norm", f"{ours}/mlp/norm")
    return Table(
        rows=tuple(rows),
        aliases={"vocab_projector.weight": f"{prefix}embeddings.word_embeddings.weight"},
        extras=(r"(vocab_|pre_classifier|classifier|qa_outputs).*",),
    )


def _language_model_rows(config: DistilBertConfig) -> tuple[Row, ...]:
    rows = [*dense_rows("vocab_transform", "head/transform"), *norm_rows("vocab_layer_norm", "head/norm")]
    return (*rows, row("vocab_projector.bias", "head/out/bias", AS_IS))


CLASSIFIER = HeadFormat(
    architecture="DistilBertForSequenceClassification",
    head=lambda config, entries: MlpClassifier(
        label_count(entries), activation="relu", dropout=config.seq_classif_dropout
    ),
    matches=lambda head: isinstance(head, MlpClassifier) and (head.pool, head.activation) == ("cls", "relu"),
    rows=lambda config: (*dense_rows("pre_classifier", "head/hidden"), *dense_rows("classifier", "head/out")),
    prefix="distilbert.",
    describe=describe_labels,
)

FAMILY = Family(
    name="distilbert",
    configure=configure,
    backbone=DistilBert,
    carry={
        **dict.fromkeys(("input_ids", "mask", "hidden"), "example"),
        "word_embeddings": "broadcast",
    },
    start=start,
    finish=finish,
    inputs=lambda config: {
        name: jax.ShapeDtypeStruct((1, min(8, config.max_position_embeddings)), jnp.int32)
        for name in ("input_ids", "attention_mask")
    },
    table=table,
    prefixes=("distilbert.", ""),
    heads={
        "DistilBertForSequenceClassification": CLASSIFIER,
        "DistilBertForMaskedLM": HeadFormat(
            architecture="DistilBertForMaskedLM",
            head=lambda config, entries: LanguageModel(config.vocab_size, bias=True, transform=config.activation),
            matches=lambda head: isinstance(head, LanguageModel) and head.tied and head.bias and bool(head.transform),
            rows=_language_model_rows,
            prefix="distilbert.",
            describe=lambda head, classes: {},
        ),
        "DistilBertForQuestionAnswering": span_classifier(
            "DistilBertForQuestionAnswering", prefix="distilbert.", theirs="qa_outputs"
        ),
        "DistilBertForTokenClassification": token_classifier(
            "DistilBertForTokenClassification", prefix="distilbert.", theirs="classifier"
        ),
    },
    own_pool="cls",
    sharding=(
        (r"backbone/embed/words/embedding", ("tensor", "fsdp")),
        (r"backbone/embed/positions/embedding", (None, "fsdp")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
        (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants={
        "distilbert-base-uncased": {},
        "distilbert-base-cased": {"vocab_size": 28996},
        "distilbert-base-multilingual-cased": {"vocab_size": 119547},
    },
    resizes={
        "vocab_size": vocabulary_resize("backbone/embed/words/embedding"),
        "max_position_embeddings": positions_resize("backbone/embed/positions/embedding"),
    },
)
