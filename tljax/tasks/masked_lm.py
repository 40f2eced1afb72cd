"""Masked language modelling: predict the tokens that were hidden (Devlin et al. 2019); fill in masks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.data.language import Masking, Unmasked, mask_token, text_tokenizer
from tljax.models.forward import forward
from tljax.models.heads import LanguageModel
from tljax.tasks.language import check_chunk, language_metrics, sums, token_losses
from tljax.tasks.spec import TaskSpec

MASKS = 8
"""Masks of a text that `predict` fills in."""


def masked_lm(spec: TaskSpec, *, rate: float = 0.15, candidates: int = 5, chunk: int | None = None) -> Task:
    """The hidden tokens of a text, by the checkpoint's own head, or a new one of BERT's form.

    Of a text `rate` of the tokens are chosen: 80 % become the mask, 10 % another token, 10 % stay. In evaluation the
    choice depends on the record's id alone.

    Args:
      spec: needs a text processor whose tokenizer has a mask, and a backbone that gives out its word embeddings.
      rate: share of the tokens.
      candidates: tokens that `predict` names for each mask (the first 8 of a text).
      chunk: hidden tokens of each example whose logits the loss makes at a time; None is as many as make about 16
        million in the batch. Where many devices share a batch more are better: each round reads the whole output
        embedding.

    Returns:
      A `Task` that is chosen by `perplexity`, the exponential of the mean −log p of the chosen tokens. Its predictions
      are the sums `nll`, `right`, `count` (B,), or for texts with masks `tokens`, `probabilities` (B, 8, candidates)
      and `positions` (B, 8).

    Raises:
      UserError: no mask token, no word embeddings, a rate out of range.
    """
    if not 0 < rate < 1:
        raise UserError(f"config.task.rate is {rate!r}; it must be above 0 and below 1.")
    if "word_embeddings" not in spec.outputs:
        raise UserError(f"config.task: masked_lm needs a text encoder, and {spec.family} gives out no word embeddings.")
    check_chunk(chunk)
    tokenizer = text_tokenizer(spec.processor)
    mask = mask_token(tokenizer)
    head = spec.head
    if not isinstance(head, LanguageModel):
        head = LanguageModel(spec.config.vocab_size, bias=True, transform=getattr(spec.config, "hidden_act", "gelu"))

    def infer(model, variables, batch):
        outputs, _ = forward(model, variables, batch["inputs"])
        if "targets" not in batch:
            return _fill_in(outputs, batch["inputs"]["input_ids"], mask, candidates)
        targets = batch["targets"]
        return sums(*_losses(outputs, targets), targets["labels"])

    def decode(predictions, records):
        lines = []
        for tokens, probabilities, positions in zip(
            *(predictions[name] for name in ("tokens", "probabilities", "positions")), strict=True
        ):
            filled = [
                [
                    {"token": tokenizer.decode([token]).strip(), "probability": round(float(chance), 6)}
                    for token, chance in zip(row, chances, strict=True)
                ]
                for row, chances, position in zip(tokens, probabilities, positions, strict=True)
                if position >= 0
            ]
            lines.append({"masks": filled})
        return lines

    return Task(
        name="masked_lm",
        head=head.clone(lazy=True),
        own_head=True,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: _losses(outputs, targets, chunk=chunk)[0],
        weights=lambda batch: (batch["targets"]["labels"] >= 0) * batch["weight"][:, None],
        predict=lambda outputs: {},
        metrics=lambda predictions, targets, records: language_metrics(predictions),
        decode=decode,
        main=("perplexity", "min"),
        prepare=lambda source, processor: (source, Masking(processor, rate)),
        question=lambda source, processor: (source, Unmasked(processor)),
        infer=infer,
    )


def _losses(
    outputs: Mapping[str, Any], targets: Mapping[str, Any], *, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """(−log p, whether right) at the chosen places, (B, K)."""
    features = jnp.take_along_axis(outputs["features"], targets["positions"][..., None], axis=1)
    return token_losses({**outputs, "features": features}, targets["labels"], chunk=chunk)


def _fill_in(outputs: Mapping[str, Any], ids: jax.Array, mask: int, candidates: int) -> dict[str, jax.Array]:
    """The likeliest tokens at the first masks; `positions` are −1 where there are fewer masks."""
    order = jnp.argsort(ids != mask, axis=1, stable=True)[:, :MASKS]
    features = jnp.take_along_axis(outputs["features"], order[..., None], axis=1)
    logits = (features @ outputs["output_embedding"].T.astype(features.dtype)).astype(jnp.float32)
    logits = logits if outputs["output_bias"] is None else logits + outputs["output_bias"]
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits), candidates)
    positions = jnp.where(jnp.take_along_axis(ids, order, axis=1) == mask, order, -1)
    return {"tokens": tokens, "probabilities": probabilities, "positions": positions}
