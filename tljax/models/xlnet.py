"""XLNet: an encoder that learns from permuted factorisation orders, with Transformer-XL's memory and positions.

Yang, Dai, Yang, Carbonell, Salakhutdinov and Le 2019, https://arxiv.org/abs/1906.08237; Dai et al. 2019.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, Layout, Row, Table, reshaped, row
from tljax.models import xlnet_inputs
from tljax.models.configs import read_config
from tljax.models.formats import dense_rows, describe_labels, label_count, norm_rows, span_classifier, token_classifier
from tljax.models.heads import LanguageModel, MlpClassifier
from tljax.models.layers import ACTIVATIONS, Dense, Embed, LayerNorm, Mlp, attention, dropout
from tljax.models.resizing import vocabulary_resize
from tljax.models.tower import Tower

OPTIONAL = {"d_head": 1, "mem_len": 0, "reuse_len": 0, "clamp_len": -1}
"""Entries that may be null or below 1 → their least number."""

ALIASES = {
    "n_token": "vocab_size",
    "hidden_size": "d_model",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names of entries → transformers' own."""


@dataclasses.dataclass(frozen=True)
class XlnetConfig:
    """The entries of config.json that shape an XLNet, with transformers' names and defaults."""

    vocab_size: int = 32000
    d_model: int = 1024
    n_layer: int = 24
    n_head: int = 16
    d_inner: int = 4096
    d_head: int | None = None
    ff_activation: str = "gelu"
    attn_type: str = "bi"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    mem_len: int | None = 512
    reuse_len: int | None = None
    bi_data: bool = False
    clamp_len: int | None = -1
    same_length: bool = False
    tie_word_embeddings: bool = True

    @property
    def hidden_size(self) -> int:
        """D, by the name that other families have for it."""
        return self.d_model

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels and tables start."""
        return nn.initializers.truncated_normal(self.initializer_range)


def configure(entries: Mapping[str, Any]) -> XlnetConfig:
    """config.json → `XlnetConfig`; raises `UserError` for what is not implemented."""
    entries = {**{ALIASES[name]: entries[name] for name in ALIASES if name in entries}, **entries}
    # A null is a value of these: a memory without a limit, no reuse.
    own = {entry: entries[entry] for entry in OPTIONAL if entry in entries}
    stated = {entry: value for entry, value in entries.items() if entry not in own}
    accepted = {"ff_activation": ACTIVATIONS, "attn_type": ("bi", "uni")}
    config = dataclasses.replace(read_config(XlnetConfig, stated, what="XLNet", accepted=accepted), **own)
    faults = [
        f"{entry} is {value!r}; it must be a whole number from {least}, or null."
        for entry, least in OPTIONAL.items()
        if (value := getattr(config, entry)) is not None and (type(value) is not int or value < least)
    ]
    size = config.d_model // config.n_head
    if config.d_model % config.n_head:
        faults.append(f"d_model {config.d_model} is no multiple of {config.n_head} heads.")
    elif config.d_head not in (None, size):
        faults.append(
            f"d_head is {config.d_head!r}; with {config.n_head} heads on d_model {config.d_model} it is {size}."
        )
    if config.d_model % 2:
        faults.append(f"d_model {config.d_model} is odd; half of a position is sines, half cosines.")
    raise_faults("This config.json describes no XLNet that can be built:", faults)
    return dataclasses.replace(config, d_head=size)


class Embeddings(nn.Module):
    """Word vectors; the start of the query stream, one vector for all places, where there are targets."""

    config: XlnetConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        words = Embed(c.vocab_size, c.d_model, c.init, name="words")
        unknown = self.param("query", c.init, (c.d_model,))
        x = words(carry["input_ids"])
        new = {"hidden": x, "positions": carry["positions"].astype(x.dtype)}
        if "target_mapping" in carry:
            new["query"] = jnp.broadcast_to(unknown, (*carry["target_mapping"].shape[:2], c.d_model))
        new = {name: dropout(self, value, c.dropout, train) for name, value in new.items()}
        if c.tie_word_embeddings:
            new["word_embeddings"] = words.table()
        return {**{name: value for name, value in carry.items() if name != "input_ids"}, **new}


class Attention(nn.Module):
    """Attention of both streams to the content and the memory, by content, distance and segment, with its norm."""

    config: XlnetConfig
    stage: str | None

    @nn.compact
    def __call__(self, carry: Mapping[str, Any], train: bool) -> tuple[jax.Array, jax.Array | None]:
        c, x, g = self.config, carry["hidden"], carry.get("query")
        split = (c.n_head, c.d_head)
        project = {name: Dense(c.d_model, False, c.init, name=name) for name in ("query", "key", "value", "distance")}
        known = jnp.concatenate([carry["mems"][self.stage].astype(x.dtype), x], axis=1) if "mems" in carry else x
        memory = known.shape[1] - x.shape[1]
        k, v, r = (
            project[name](y).reshape(*y.shape[:-1], *split)
            for name, y in (("key", known), ("value", known), ("distance", carry["positions"]))
        )
        if "backward" in carry:
            r = r[carry["backward"]]
        # Of rank 1, so that weight decay leaves them alone.
        biases = {
            name: self.param(f"{name}_bias", c.init, (c.d_model,)).reshape(split)
            for name in ("content", "distance", "segment")
        }
        segments = self.param("segments", c.init, (2, *split))
        output, norm = Dense(c.d_model, False, c.init, name="output"), LayerNorm(c.layer_norm_eps, name="norm")
        scale = c.d_head**-0.5

        def attend(q: jax.Array, seen: jax.Array) -> jax.Array:
            bias = _by_distance(q + biases["distance"], r, keys=k.shape[1])
            if "token_type_ids" in carry:
                other = xlnet_inputs.other_segment(carry["token_type_ids"], memory)
                bias = bias + _by_segment(q + biases["segment"], segments, other)
            drop = functools.partial(self._drop, train=train)
            return attention(
                q + biases["content"], k, v, seen[:, None], bias=bias * scale, scale=scale, drop=drop, module=self
            )

        def finish(residual: jax.Array, y: jax.Array) -> jax.Array:
            y = output(y.reshape(*y.shape[:-2], c.d_model))
            return norm(residual + dropout(self, y, c.dropout, train))

        seen, own = xlnet_inputs.visible(c, carry, memory)
        h = finish(x, attend(project["query"](x).reshape(*x.shape[:-1], *split), seen | own))
        if g is None:
            return h, None
        q = project["query"](g).reshape(*g.shape[:-1], *split)
        # A target asks from its place in the text, which decides what it sees, and how far.
        places = carry["target_mapping"].astype(q.dtype)
        y = attend(jnp.einsum("bpnk,bpt->btnk", q, places), seen)
        return h, finish(g, jnp.einsum("btnk,bpt->bpnk", y, places))

    def _drop(self, weights: jax.Array, train: bool) -> jax.Array:
        return dropout(self, weights, self.config.dropout, train)


def _by_distance(q: jax.Array, r: jax.Array, *, keys: int) -> jax.Array:
    """Scores (B, N, T, S) of queries (B, T, N, K) by their distances to the keys.

    `r` (1 or B, L, N, K) begins at distance S and falls by 1. Row i must thus be read from place T − i on, which a
    change of shape does for all rows at once (Dai et al. 2019, appendix B).
    """
    scores = jnp.matmul(q.transpose(0, 2, 1, 3), r.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    batch, heads, tokens, count = scores.shape
    scores = scores.reshape(batch, heads, count, tokens)[:, :, 1:]
    return scores.reshape(batch, heads, tokens, count - 1)[..., :keys]


def _by_segment(q: jax.Array, segments: jax.Array, other: jax.Array) -> jax.Array:
    """Scores (B, N, T, S) of queries (B, T, N, K): one for keys of their own segment, one for the `other` (B, T, S)."""
    scores = jnp.einsum("btnk,snk->bnts", q, segments, preferred_element_type=jnp.float32)
    return jnp.where(other[:, None], scores[..., 1:], scores[..., :1])


class Block(nn.Module):
    """One layer, on both streams, norms after the residuals; what the `last` makes is dropped out once more."""

    config: XlnetConfig
    last: bool

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c, stage = self.config, self.name
        names = ("hidden", "query") if "query" in carry else ("hidden",)
        streams = Attention(c, stage, name="attention")(carry, train)
        mlp = Mlp(
            c.d_inner,
            c.ff_activation,
            epsilon=c.layer_norm_eps,
            pre_norm=False,
            rate=c.dropout,
            inner_rate=c.dropout,
            init=c.init,
            name="mlp",
        )
        new = {name: mlp(x, train) for name, x in zip(names, streams, strict=False)}
        if self.last:
            new[names[-1]] = dropout(self, new[names[-1]], c.dropout, train)
        if "mems" in carry:
            new["mems"] = {**carry["mems"], stage: remember(c, carry["mems"][stage], carry["hidden"])}
        return {**carry, **new}


def remember(config: XlnetConfig, memory: jax.Array, hidden: jax.Array) -> jax.Array:
    """The memory (B, M, D) for the next segment: the last `mem_len` of the old one and of what a layer reads.

    With `reuse_len` only so many first tokens of `hidden` (B, T, D) are kept; without `mem_len` all of them.
    """
    hidden = hidden[:, : config.reuse_len] if config.reuse_len else hidden
    whole = jnp.concatenate([memory.astype(hidden.dtype), hidden], axis=1)
    return jax.lax.stop_gradient(whole[:, -config.mem_len :] if config.mem_len else whole)


class Xlnet(Tower):
    """`embed, block0 …`."""

    config: XlnetConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        return {
            "embed": functools.partial(Embeddings, c),
            **{f"block{i}": functools.partial(Block, c, i == c.n_layer - 1) for i in range(c.n_layer)},
        }

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        return {"embed/words/embedding": ("embed", "head")} if self.config.tie_word_embeddings else {}


def finish(config: XlnetConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled None, mask (B, T); word_embeddings (V, D) and mems where there are any.

    With targets `hidden` is the query stream's, (B, P, D), and `mask` (B, P) marks the rows that ask for a place.
    """
    outputs = {"hidden": carry["hidden"], "pooled": None, "mask": carry["mask"]}
    if "query" in carry:
        asked = (carry["target_mapping"] != 0).any(axis=-1).astype(jnp.int32)
        outputs |= {"hidden": carry["query"], "mask": asked}
    return {**outputs, **{name: carry[name] for name in ("word_embeddings", "mems") if name in carry}}


def _kernel(heads: int, size: int) -> Layout:
    """A projection into heads: their (D, N, K) ↔ a kernel (D, N·K)."""
    return Layout(
        "flat-heads", lambda x: (x.reshape(len(x), heads * size),), lambda x: (x.reshape(len(x), heads, size),)
    )


def _output_kernel(heads: int, size: int) -> Layout:
    """The projection out of heads: their (D, N, K) ↔ a kernel (N·K, D)."""
    inner = _kernel(heads, size)
    return Layout("flat-heads-out", lambda x: (inner.ours(x)[0].T,), lambda x: inner.theirs(x.T))


def table(config: XlnetConfig, prefix: str) -> Table:
    """transformers' names of an XLNetModel."""
    rows = [
        row(f"{prefix}word_embedding.weight", "backbone/embed/words/embedding", AS_IS),
        row(f"{prefix}mask_emb", "backbone/embed/query", reshaped((1, 1, config.d_model), (config.d_model,))),
    ]
    for i in range(config.n_layer):
        theirs, ours = f"{prefix}layer.{i}", f"backbone/block{i}"
        attend, split = f"{ours}/attention", (config.n_head, config.d_head)
        into, out, flat = _kernel(*split), _output_kernel(*split), reshaped(split, (config.d_model,))
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("r", "distance")):
            rows.append(row(f"{theirs}.rel_attn.{short}", f"{attend}/{name}/kernel", into))
        rows.append(row(f"{theirs}.rel_attn.o", f"{attend}/output/kernel", out))
        for short, name in (("w", "content"), ("r", "distance"), ("s", "segment")):
            rows.append(row(f"{theirs}.rel_attn.r_{short}_bias", f"{attend}/{name}_bias", flat))
        rows.append(row(f"{theirs}.rel_attn.seg_embed", f"{attend}/segments", AS_IS))
        rows += norm_rows(f"{theirs}.rel_attn.layer_norm", f"{attend}/norm")
        rows += dense_rows(f"{theirs}.ff.layer_1", f"{ours}/mlp/up")
        rows += dense_rows(f"{theirs}.ff.layer_2", f"{ours}/mlp/down")
        rows += norm_rows(f"{theirs}.ff.layer_norm", f"{ours}/mlp/norm")
    return Table(
        rows=tuple(rows),
        aliases={"lm_loss.weight": f"{prefix}word_embedding.weight"} if config.tie_word_embeddings else {},
        # Heads that nobody asked for.
        extras=(r"(lm_loss|sequence_summary|logits_proj|classifier|qa_outputs|(start|end)_logits|answer_class)\..*",),
    )


def _language_model_rows(config: XlnetConfig) -> tuple[Row, ...]:
    if config.tie_word_embeddings:
        return (row("lm_loss.bias", "head/out/bias", AS_IS),)
    return tuple(dense_rows("lm_loss", "head/out"))


LANGUAGE_MODEL = HeadFormat(
    architecture="XLNetLMHeadModel",
    head=lambda config, entries: LanguageModel(config.vocab_size, tied=config.tie_word_embeddings, bias=True),
    matches=lambda head: isinstance(head, LanguageModel) and head.bias and not head.transform and head.scale == 1.0,
    rows=_language_model_rows,
    prefix="transformer.",
    describe=lambda head, classes: {},
)

SUMMARIES = {"last": "last", "cls_index": "last", "first": "cls"}
"""Their summary of a text → our pooling. Their last token is that of the row, which is real where padding stands on the
left, as this family's tokenizer puts it."""


def _summary(config: XlnetConfig, entries: Mapping[str, Any]) -> MlpClassifier:
    """The classifier that a config.json describes; raises `UserError` for one that is another function."""
    given = {
        "summary_type": (entries.get("summary_type", "last"), SUMMARIES),
        "summary_use_proj": (entries.get("summary_use_proj", True), (True,)),
        "summary_proj_to_labels": (entries.get("summary_proj_to_labels") or False, (False,)),
        "summary_activation": (entries.get("summary_activation", "tanh"), ACTIVATIONS),
        "summary_first_dropout": (entries.get("summary_first_dropout") or 0, (0,)),
    }
    faults = [
        f"{name} is {value!r}, which is not implemented; accepted: {', '.join(map(str, accepted))}."
        for name, (value, accepted) in given.items()
        if value not in accepted
    ]
    raise_faults("This config.json describes no classifier on XLNet that can be built:", faults)
    return MlpClassifier(
        label_count(entries),
        pool=SUMMARIES[given["summary_type"][0]],
        activation=given["summary_activation"][0],
        dropout=entries.get("summary_last_dropout", 0.1),
    )


CLASSIFIER = HeadFormat(
    architecture="XLNetForSequenceClassification",
    head=_summary,
    matches=lambda head: isinstance(head, MlpClassifier) and head.pool in SUMMARIES.values(),
    rows=lambda config: (
        *dense_rows("sequence_summary.summary", "head/hidden"),
        *dense_rows("logits_proj", "head/out"),
    ),
    prefix="transformer.",
    describe=lambda head, classes: {
        **describe_labels(head, classes),
        "summary_type": {"last": "last", "cls": "first"}[head.pool],
        "summary_use_proj": True,
        "summary_activation": head.activation,
        "summary_last_dropout": head.dropout,
    },
)

EXAMPLES = ("input_ids", "token_type_ids", "mask", "perm_mask", "target_mapping", "backward", "hidden", "query", "mems")

FAMILY = Family(
    name="xlnet",
    configure=configure,
    backbone=Xlnet,
    carry={**dict.fromkeys(EXAMPLES, "example"), "positions": "broadcast", "word_embeddings": "broadcast"},
    start=xlnet_inputs.start,
    finish=finish,
    inputs=lambda config: {
        name: jax.ShapeDtypeStruct((1, 8), jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
    },
    table=table,
    prefixes=("transformer.", ""),
    heads={
        "XLNetLMHeadModel": LANGUAGE_MODEL,
        "XLNetForSequenceClassification": CLASSIFIER,
        "XLNetForTokenClassification": token_classifier(
            "XLNetForTokenClassification", prefix="transformer.", theirs="classifier"
        ),
        "XLNetForQuestionAnsweringSimple": span_classifier(
            "XLNetForQuestionAnsweringSimple", prefix="transformer.", theirs="qa_outputs"
        ),
    },
    own_pool="last",
    sharding=(
        (r"backbone/embed/words/embedding", ("tensor", "fsdp")),
        (r"backbone/block\d+/(attention/(query|key|value|distance)|mlp/up)/kernel", ("fsdp", "tensor")),
        (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/block\d+/mlp/up/bias", ("tensor",)),
        (r"backbone/block\d+/attention/(content|distance|segment)_bias", ("tensor",)),
        (r"backbone/block\d+/attention/segments", (None, "tensor", None)),
        (r"backbone/(embed/query|.*/(scale|bias))", (None,)),
    ),
    variants={
        "xlnet-base-cased": dict(d_model=768, n_layer=12, n_head=12, d_inner=3072, mem_len=None),
        "xlnet-large-cased": dict(d_model=1024, n_layer=24, n_head=16, d_inner=4096, mem_len=None),
    },
    resizes={"vocab_size": vocabulary_resize("backbone/embed/words/embedding")},
)
