"""Causal language modelling: predict the next token; continue texts."""

from functools import partial

import jax

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Task
from tljax.data.language import NextToken, Prompts, pack, text_tokenizer
from tljax.models import get_family
from tljax.models.generation import generate
from tljax.tasks.language import check_chunk, language_metrics, next_token_sums, own_language_model, token_losses
from tljax.tasks.spec import TaskSpec


def causal_lm(
    spec: TaskSpec,
    *,
    length: int = 256,
    chunk: int | None = None,
    max_new_tokens: int = 128,
    num_beams: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Task:
    """The next token at every place, by the checkpoint's own output embedding; `predict` continues texts.

    Texts are packed: one after another, each with its first and last token, cut into chunks; no token sees another
    text than its own.

    Args:
      spec: needs a text processor; the backbone is a decoder.
      length: tokens in a chunk of text, T.
      chunk: tokens of each example whose logits the loss makes at a time; None is as many as make about 16 million in
        the batch. Where many devices share a batch more are better: each round reads the whole output embedding.
      max_new_tokens: how long a text is continued at most.
      num_beams: beams of the search; 1 is greedy.
      temperature: 0 takes the likeliest token; above it samples.
      top_k: sample among so many likeliest tokens; 0 among all.
      top_p: sample among the likeliest tokens that together have this probability.
      seed: of sampling.

    Returns:
      A `Task` that is chosen by `perplexity`, the exponential of the mean −log p of all next tokens. Its predictions
      are the sums `nll`, `right` and `count` (B,) of each chunk, or, for texts to continue, `tokens` (B, L).

    Raises:
      UserError: a backbone that is no decoder, a chunk longer than the model's positions, no tokenizer.
    """
    if get_family(spec.family).cache is None or "encoder_hidden" in spec.outputs:
        raise UserError(f"config.task: causal_lm needs a decoder, and {spec.family} is none.")
    positions = getattr(spec.config, "max_position_embeddings", None)
    raise_faults(
        "The section config.task cannot be used:",
        [f"length is {length!r}; a chunk must hold at least 2 tokens."] * (length < 2)
        + [f"length is {length}, and the model has {positions} positions."] * bool(positions and length > positions)
        + [f"max_new_tokens is {max_new_tokens!r}; it must be above 0."] * (max_new_tokens < 1),
    )
    check_chunk(chunk)
    tokenizer = text_tokenizer(spec.processor)
    head = own_language_model(spec)
    continued = partial(
        generate,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
        num_beams=num_beams,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )

    def infer(model, variables, batch):
        if "targets" not in batch:
            model = model._replace(head=head)
            return {"tokens": continued(model, variables, batch["inputs"], rng=jax.random.key(seed)).tokens}
        return next_token_sums(model, variables, batch)

    def decode(predictions, records):
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in predictions["tokens"]]
        return [{"continuation": text} for text in texts]

    return Task(
        name="causal_lm",
        head=head.clone(lazy=True),
        own_head=True,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: token_losses(outputs, targets, chunk=chunk)[0],
        weights=lambda batch: (batch["targets"] >= 0) * batch["weight"][:, None],
        predict=lambda outputs: {},
        metrics=lambda predictions, targets, records: language_metrics(predictions),
        decode=decode,
        main=("perplexity", "min"),
        prepare=lambda source, processor: (pack(source, processor, length), NextToken(processor, length)),
        question=lambda source, processor: (source, Prompts(processor)),
        infer=infer,
    )
