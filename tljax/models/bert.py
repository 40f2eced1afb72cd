"""BERT: a bidirectional text encoder. Devlin, Chang, Lee and Toutanova 2019, https://arxiv.org/abs/1810.04805."""

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
from tljax.models.formats import dense_rows, linear_classifier, norm_rows, span_classifier, token_classifier
from tljax.models.heads import LanguageModel
from tljax.models.layers import ACTIVATIONS, Dense, Embed, LayerNorm, Mlp, SelfAttention, dropout
from tljax.models.resizing import positions_resize, vocabulary_resize
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The entries of config.json that shape a BERT, with transformers' names and defaults.

    `add_pooling_layer` is an argument of transformers' class and not an entry of its config; it is one here.
    """

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

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels and tables start."""
        return nn.initializers.truncated_normal(self.initializer_range)


ACCEPTED = {
    "hidden_act": ACTIVATIONS,
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
"""The values of config.json's entries that are implemented."""


def configure(entries: Mapping[str, Any]) -> BertConfig:
    """config.json → `BertConfig`; raises `UserError` for what is not implemented."""
    config = read_config(BertConfig, entries, what="BERT", accepted=ACCEPTED)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads.")
    return config


class Embeddings(nn.Module):
    """Words + positions + token types, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, ids = self.config, carry["input_ids"]
        words = Embed(c.vocab_size, c.hidden_size, c.init, name="words")
        x = words(ids)
        # The reference's order of summation.
        x = x + Embed(c.type_vocab_size, c.hidden_size, c.init, name="types")(carry["token_type_ids"])
        x = x + Embed(c.max_position_embeddings, c.hidden_size, c.init, name="positions")(jnp.arange(ids.shape[1]))
        x = LayerNorm(c.layer_norm_eps, name="norm")(x)
        table = words.table()
        hidden = dropout(self, x, c.hidden_dropout_prob, train)
        return {"mask": carry["mask"], "hidden": hidden, "word_embeddings": table}


class Block(nn.Module):
    """One transformer layer, norms after the residuals."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        shared = dict(epsilon=c.layer_norm_eps, pre_norm=False, rate=c.hidden_dropout_prob, init=c.init)
        attend = SelfAttention(
            heads=c.num_attention_heads,
            qkv_bias=True,
            attention_rate=c.attention_probs_dropout_prob,
            name="attention",
            **shared,
        )
        x = attend(carry["hidden"], carry["mask"][:, None, None, :] > 0, train)
        x = Mlp(c.intermediate_size, c.hidden_act, name="mlp", **shared)(x, train)
        return {**carry, "hidden": x}


class Pooler(nn.Module):
    """A dense layer and tanh on the first token."""

    config: BertConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        x = Dense(self.config.hidden_size, kernel_init=self.config.init, name="dense")(carry["hidden"][:, 0])
        return {**carry, "pooled": jnp.tanh(x)}


class Bert(Tower):
    """`embed, block0 …, pooler`; the pooler only where the config has one."""

    config: BertConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = {f"block{i}": functools.partial(Block, c) for i in range(c.num_hidden_layers)}
        pooler = {"pooler": functools.partial(Pooler, c)} if c.add_pooling_layer else {}
        return {"embed": functools.partial(Embeddings, c), **blocks, **pooler}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage != "pooler")

    @property
    def shared(self) -> dict[str, tuple[str, ...]]:
        return {"embed/words/embedding": ("embed", "head")}


def start(config: BertConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids (B, T), and where they are absent a mask of ones and token types of zeros, as in transformers.

    Raises:
      UserError: no `input_ids`, or more tokens than positions.
    """
    if "input_ids" not in inputs:
        raise UserError(f"BERT reads `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    ids = inputs["input_ids"]
    wrong = [
        f"{name} has the shape {inputs[name].shape}, and input_ids {ids.shape}."
        for name in ("attention_mask", "token_type_ids")
        if inputs.get(name) is not None and inputs[name].shape != ids.shape
    ]
    if ids.shape[1] > config.max_position_embeddings:
        wrong.append(
            f"An input has {ids.shape[1]} tokens, and the model has {config.max_position_embeddings} positions. Lower "
            "the processor's max_length, or adapt max_position_embeddings."
        )
    raise_faults("These inputs do not fit the model:", wrong)
    mask, types = inputs.get("attention_mask"), inputs.get("token_type_ids")
    return {
        "input_ids": ids,
        "mask": jnp.ones_like(ids) if mask is None else mask,
        "token_type_ids": jnp.zeros_like(ids) if types is None else types,
    }


def finish(config: BertConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled (B, D) or None, mask (B, T), word_embeddings (V, D)."""
    return {**{name: carry[name] for name in ("hidden", "mask", "word_embeddings")}, "pooled": carry.get("pooled")}


def table(config: BertConfig, prefix: str) -> Table:
    """transformers' names of a BertModel."""
    rows = [
        row(f"{prefix}embeddings.{theirs}_embeddings.weight", f"backbone/embed/{ours}/embedding", AS_IS)
        for theirs, ours in (("word", "words"), ("position", "positions"), ("token_type", "types"))
    ]
    rows += norm_rows(f"{prefix}embeddings.LayerNorm", "backbone/embed/norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"backbone/block{i}"
        for name in ("query", "key", "value"):
            rows += dense_rows(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        rows += dense_rows(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += norm_rows(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention/norm")
        rows += dense_rows(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        rows += dense_rows(f"{theirs}.output.dense", f"{ours}/mlp/down")
        rows += norm_rows(f"{theirs}.output.LayerNorm", f"{ours}/mlp/norm")
    if config.add_pooling_layer:
        rows += dense_rows(f"{prefix}pooler.dense", "backbone/pooler/dense")
    return Table(
        rows=tuple(rows),
        aliases={
            "cls.predictions.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        extras=(
            r"(bert\.)?embeddings\.(position_ids|token_type_ids)",
            r"(cls|classifier|qa_outputs)\..*",
            *(() if config.add_pooling_layer else (r"(bert\.)?pooler\..*",)),
        ),
        # TensorFlow's names, in files converted before 2019.
        renames=((r"(.*LayerNorm)\.gamma", r"\1.weight"), (r"(.*LayerNorm)\.beta", r"\1.bias")),
    )


NO_POOLER = (r"bert\.pooler\..*",)
"""What the classes lack that read every token."""


def _language_model_rows(config: BertConfig) -> tuple[Row, ...]:
    theirs = "cls.predictions.transform"
    rows = [*dense_rows(f"{theirs}.dense", "head/transform"), *norm_rows(f"{theirs}.LayerNorm", "head/norm")]
    return (*rows, row("cls.predictions.bias", "head/out/bias", AS_IS))


MASKED_LANGUAGE_MODEL = HeadFormat(
    architecture="BertForMaskedLM",
    head=lambda config, entries: LanguageModel(
        config.vocab_size, bias=True, transform=config.hidden_act, epsilon=config.layer_norm_eps
    ),
    matches=lambda head: isinstance(head, LanguageModel) and head.tied and head.bias and bool(head.transform),
    rows=_language_model_rows,
    prefix="bert.",
    describe=lambda head, classes: {},
    lacks=NO_POOLER,
)


def _classifier_dropout(config: BertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _size(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * width, **others}


CASED, CHINESE, MULTILINGUAL = 28996, 21128, 119547

VARIANTS = {
    "bert-base-uncased": _size(768, 12, 12),
    "bert-base-cased": _size(768, 12, 12, vocab_size=CASED),
    "bert-base-chinese": _size(768, 12, 12, vocab_size=CHINESE),
    "bert-base-multilingual-cased": _size(768, 12, 12, vocab_size=MULTILINGUAL),
    "bert-large-uncased": _size(1024, 24, 16),
    "bert-large-cased": _size(1024, 24, 16, vocab_size=CASED),
    # Turc et al. 2019, "Well-read students learn better".
    "bert-tiny": _size(128, 2, 2),
    "bert-mini": _size(256, 4, 4),
    "bert-small": _size(512, 4, 8),
    "bert-medium": _size(512, 8, 8),
    # Wang et al. 2020, and its halves by sentence-transformers.
    "MiniLM-L12-H384-uncased": _size(384, 12, 12),
    "all-MiniLM-L6-v2": _size(384, 6, 12),
    "all-MiniLM-L12-v2": _size(384, 12, 12),
}
"""Published name → what differs from, or restates, the defaults."""

FAMILY = Family(
    name="bert",
    configure=configure,
    backbone=Bert,
    carry={
        **dict.fromkeys(("input_ids", "token_type_ids", "mask", "hidden", "pooled"), "example"),
        "word_embeddings": "broadcast",
    },
    start=start,
    finish=finish,
    inputs=lambda config: {
        name: jax.ShapeDtypeStruct((1, min(8, config.max_position_embeddings)), jnp.int32)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    },
    table=table,
    prefixes=("bert.", ""),
    heads={
        "BertForSequenceClassification": linear_classifier(
            "BertForSequenceClassification",
            prefix="bert.",
            theirs="classifier",
            pools=("pooled",),
            dropout=_classifier_dropout,
        ),
        "BertForMaskedLM": MASKED_LANGUAGE_MODEL,
        "BertForQuestionAnswering": span_classifier(
            "BertForQuestionAnswering", prefix="bert.", theirs="qa_outputs", lacks=NO_POOLER
        ),
        "BertForTokenClassification": token_classifier(
            "BertForTokenClassification",
            prefix="bert.",
            theirs="classifier",
            dropout=_classifier_dropout,
            lacks=NO_POOLER,
        ),
    },
    own_pool="pooled",
    sharding=(
        (r"backbone/embed/words/embedding", ("tensor", "fsdp")),
        (r"backbone/embed/(positions|types)/embedding", (None, "fsdp")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
        (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/pooler/dense/kernel", ("fsdp", None)),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants=VARIANTS,
    resizes={
        "vocab_size": vocabulary_resize("backbone/embed/words/embedding"),
        "max_position_embeddings": positions_resize("backbone/embed/positions/embedding"),
    },
)
