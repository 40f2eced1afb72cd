"""T5: an encoder and a decoder with relative positions. Raffel, Shazeer, Roberts et al. 2020."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, Row, Table, row
from tljax.models import decoders
from tljax.models.formats import dense_rows, token_classifier
from tljax.models.heads import LanguageModel
from tljax.models.resizing import vocabulary_resize
from tljax.models.t5_tower import T5, T5Config, configure
from tljax.models.t5_variants import VARIANTS


def start(config: T5Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry.

    Args:
      config: of the model.
      inputs: `input_ids` (B, S') or, in their place, `encoder_hidden` (B, S', D); optionally `attention_mask` (B, S')
        and `decoder_input_ids` (B, T), without which the decoder is left out; `decoder_attention_mask` (B, T), or over
        all slots with a `cache` and its `cache_index`. Positions count slots, so `decoder_position_ids` change nothing.

    Raises:
      UserError: neither form of the encoder's input, or shapes that do not agree.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    if ("input_ids" in given) == ("encoder_hidden" in given):
        raise UserError(f"T5 reads `input_ids` or `encoder_hidden`, and the inputs are: {', '.join(inputs) or 'none'}.")
    source = given["input_ids"] if "input_ids" in given else given["encoder_hidden"]
    ids, cache = given.get("decoder_input_ids"), given.get("cache")
    if ids is not None and not config.has_decoder:
        raise UserError("This is the encoder of a T5 alone, and the inputs hold `decoder_input_ids`.")
    expected = {"attention_mask": source.shape[:2]}
    if ids is not None:
        slots = ids.shape if cache is None else (ids.shape[0], cache["block0/key"].shape[1])
        expected["decoder_attention_mask"] = slots
    raise_faults(
        "These inputs do not fit the model:",
        [
            f"{name} has the shape {given[name].shape}, and {shape} is needed."
            for name, shape in expected.items()
            if name in given and given[name].shape != shape
        ],
    )
    mask = given.get("attention_mask", jnp.ones(source.shape[:2], jnp.int32))
    carry = {name: given[name] for name in ("input_ids", "encoder_hidden") if name in given}
    carry["mask"] = mask
    if ids is None:
        return carry if "input_ids" in carry else {**carry, "hidden": source}
    decoder_mask = given.get("decoder_attention_mask", jnp.ones(slots, jnp.int32))
    rest = {name: given[name] for name in ("cache", "cache_index") if name in given}
    return {**carry, "decoder_input_ids": ids, "decoder_mask": decoder_mask, **rest}


def finish(config: T5Config, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D) of the decoder where it ran and of the encoder otherwise, and the mask that belongs to it.

    Besides: pooled (None), encoder_hidden (B, S', D), word_embeddings (V, D) where the output embedding is tied, and
    the new cache.
    """
    outputs = {
        "hidden": carry["hidden"],
        "pooled": None,
        "mask": carry.get("decoder_mask", carry["mask"]),
    }
    if "encoder_hidden" in carry:
        outputs["encoder_hidden"] = carry["encoder_hidden"]
    if config.tie_word_embeddings and "word_embeddings" in carry:
        outputs["word_embeddings"] = carry["word_embeddings"]
    return {**outputs, "cache": carry["cache"]} if "cache" in carry else outputs


def _inputs(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
    wings = ("", "decoder_") if config.has_decoder else ("",)
    names = [f"{wing}{name}" for wing in wings for name in ("input_ids", "attention_mask")]
    return {name: jax.ShapeDtypeStruct((1, 8), jnp.int32) for name in names}


def _scale(theirs: str, ours: str) -> Row:
    return row(f"{theirs}.weight", f"{ours}/scale", AS_IS)


def _attention_rows(theirs: str, ours: str) -> list[Row]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return [r for a, b in names.items() for r in dense_rows(f"{theirs}.{a}", f"{ours}/{b}", bias=False)]


def table(config: T5Config, prefix: str) -> Table:
    """transformers' names of a T5Model, or of a T5EncoderModel where there is no decoder."""
    rows = [row(f"{prefix}shared.weight", "backbone/encoder/embed/words/embedding", AS_IS)]
    wings = {"encoder": config.num_layers, **({"decoder": config.decoder_layers} if config.has_decoder else {})}
    inner = (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")) if config.gated else (("up", "wi"), ("down", "wo"))
    for wing, count in wings.items():
        for i in range(count):
            theirs, ours = f"{prefix}{wing}.block.{i}.layer", f"backbone/{wing}/block{i}"
            rows += _attention_rows(f"{theirs}.0.SelfAttention", f"{ours}/attention")
            rows.append(_scale(f"{theirs}.0.layer_norm", f"{ours}/attention_norm"))
            if i == 0:
                name = f"{theirs}.0.SelfAttention.relative_attention_bias.weight"
                rows.append(row(name, f"{ours}/attention/positions/embedding", AS_IS))
            if wing == "decoder":
                rows += _attention_rows(f"{theirs}.1.EncDecAttention", f"{ours}/cross")
                rows.append(_scale(f"{theirs}.1.layer_norm", f"{ours}/cross_norm"))
            last = f"{theirs}.{2 if wing == 'decoder' else 1}"
            for a, b in inner:
                rows += dense_rows(f"{last}.DenseReluDense.{b}", f"{ours}/mlp/{a}", bias=False)
            rows.append(_scale(f"{last}.layer_norm", f"{ours}/mlp_norm"))
        rows.append(_scale(f"{prefix}{wing}.final_layer_norm", f"backbone/{wing}/norm/norm"))
    copies = [f"{prefix}{wing}.embed_tokens.weight" for wing in ("encoder", "decoder")]
    copies += ["lm_head.weight"] if config.tie_word_embeddings else []
    return Table(
        rows=tuple(rows),
        aliases=dict.fromkeys(copies, f"{prefix}shared.weight"),
        # A table of positions that the first checkpoints hold and no code reads, and heads that nobody asked for.
        extras=(
            r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
            r"(lm_head|classification_head|qa_outputs|classifier)\..*",
            *(() if config.has_decoder else (r"(transformer\.)?decoder\..*",)),
        ),
    )


LANGUAGE_MODEL = HeadFormat(
    architecture="T5ForConditionalGeneration",
    head=lambda config, entries: LanguageModel(
        config.vocab_size,
        tied=config.tie_word_embeddings,
        scale=config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
    ),
    matches=lambda head: isinstance(head, LanguageModel) and not head.transform and not head.bias,
    rows=lambda config: () if config.tie_word_embeddings else tuple(dense_rows("lm_head", "head/out", bias=False)),
    prefix="",
    describe=lambda head, classes: {},
)

FAMILY = Family(
    name="t5",
    configure=configure,
    backbone=T5,
    carry={
        **dict.fromkeys(("input_ids", "mask", "hidden", "encoder_hidden"), "example"),
        **dict.fromkeys(("decoder_input_ids", "decoder_mask", "cache"), "example"),
        **dict.fromkeys(("word_embeddings", "position_bias", "decoder_position_bias", "cache_index"), "broadcast"),
    },
    start=start,
    finish=finish,
    inputs=_inputs,
    table=table,
    # The language model, whose head may be kept verbatim, has no prefix; the reference's classifiers have one.
    prefixes=("", "transformer.", ""),
    heads={"T5ForConditionalGeneration": LANGUAGE_MODEL},
    own_pool="mean",
    sharding=(
        (r"backbone/encoder/embed/words/embedding", ("tensor", "fsdp")),
        (r"backbone/.*/attention/positions/embedding", (None, None)),
        (r"backbone/.*/((attention|cross)/(query|key|value)|mlp/(gate|up))/kernel", ("fsdp", "tensor")),
        (r"backbone/.*/((attention|cross)/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/.*/scale", (None,)),
    ),
    variants=VARIANTS,
    resizes={"vocab_size": vocabulary_resize("backbone/encoder/embed/words/embedding")},
    cache=lambda config, batch, length, dtype: decoders.empty_cache(
        config.decoder_layers, batch, length, config.num_heads, config.d_kv, dtype
    ),
)

ENCODER = FAMILY._replace(
    name="t5_encoder",
    configure=lambda entries: dataclasses.replace(configure(entries), has_decoder=False),
    carry=dict.fromkeys(("input_ids", "mask", "hidden", "encoder_hidden"), "example")
    | dict.fromkeys(("word_embeddings", "position_bias"), "broadcast"),
    heads={
        "T5ForTokenClassification": token_classifier(
            "T5ForTokenClassification", prefix="transformer.", theirs="classifier"
        )
    },
    cache=None,
)
"""The encoder alone, of any T5's checkpoint; the decoder's tensors are kept for export and take no part in training."""
