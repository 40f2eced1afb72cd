"""Permutation language modelling: predict tokens in a random order, from those before them (Yang et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.data.language import text_tokenizer
from tljax.data.permutation import Blanks, Permuted
from tljax.models import get_family
from tljax.models.forward import forward
from tljax.models.heads import LanguageModel
from tljax.tasks.language import language_metrics, next_token_sums, token_losses
from tljax.tasks.spec import TaskSpec


def permutation_lm(spec: TaskSpec, *, share: int = 6, candidates: int = 5) -> Task:
    """The last tokens of a random order of a text, each from all before it in the order, by the checkpoint's own head.

    Every text gets an order of its own in each epoch; in evaluation the order depends on the record's id alone. The
    first tokens of the order are context, and all of them see one another.

    Args:
      spec: needs a text processor, and a backbone with a query stream (XLNet).
      share: K of the paper: one token in so many is predicted.
      candidates: tokens that `predict` names for each mask (the first 8 of a text); no mask sees another.

    Returns:
      A `Task` that is chosen by `perplexity`, the exponential of the mean −log p of the predicted tokens. Its
      predictions are the sums `nll`, `right`, `count` (B,), or for texts with masks `tokens`, `probabilities`
      (B, 8, candidates) and `asked` (B, 8).

    Raises:
      UserError: a backbone without a query stream, options out of range, no tokenizer.
    """
    if "target_mapping" not in get_family(spec.family).carry:
        raise UserError(f"config.task: permutation_lm needs a model with a query stream, and {spec.family} has none.")
    for name, value, least in (("share", share, 2), ("candidates", candidates, 1)):
        if type(value) is not int or value < least:
            raise UserError(f"config.task.{name} is {value!r}; it must be a whole number from {least}.")
    tokenizer = text_tokenizer(spec.processor)
    head = spec.head
    if not isinstance(head, LanguageModel):
        head = LanguageModel(spec.config.vocab_size, tied="word_embeddings" in spec.outputs, bias=True)

    def infer(model: Any, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        if "targets" in batch:
            return next_token_sums(model, variables, batch)
        outputs, _ = forward(model, variables, batch["inputs"])
        logits = (outputs["features"] @ outputs["output_embedding"].T).astype(jnp.float32)
        logits = logits if outputs["output_bias"] is None else logits + outputs["output_bias"]
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits), candidates)
        return {"tokens": tokens, "probabilities": probabilities, "asked": outputs["mask"]}

    def decode(predictions: Mapping[str, Any], records: Sequence[Any]) -> list[dict[str, Any]]:
        rows = zip(*(predictions[name] for name in ("tokens", "probabilities", "asked")), strict=True)
        return [
            {
                "masks": [
                    [
                        {"token": tokenizer.decode([token]).strip(), "probability": round(float(chance), 6)}
                        for token, chance in zip(ids, chances, strict=True)
                    ]
                    for ids, chances, wanted in zip(*row, strict=True)
                    if wanted
                ]
            }
            for row in rows
        ]

    return Task(
        name="permutation_lm",
        head=head.clone(lazy=True),
        own_head=True,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: token_losses(outputs, targets)[0],
        weights=lambda batch: (batch["targets"] >= 0) * batch["weight"][:, None],
        predict=lambda outputs: {},
        metrics=lambda predictions, targets, records: language_metrics(predictions),
        decode=decode,
        main=("perplexity", "min"),
        prepare=lambda source, processor: (source, Permuted(processor, share)),
        question=lambda source, processor: (source, Blanks(processor)),
        infer=infer,
    )
