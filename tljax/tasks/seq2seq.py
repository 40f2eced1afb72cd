"""From a source text to a target text: translation, summarisation, any task that is written out."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Task
from tljax.data.language import text_tokenizer
from tljax.data.seq2seq import SourceTarget, first_token
from tljax.models import get_family
from tljax.models.generation import generate
from tljax.models.heads import LanguageModel
from tljax.tasks.language import language_metrics, next_token_sums
from tljax.tasks.spec import TaskSpec
from tljax.tasks.text_metrics import METRICS, text_metrics

SAMPLES = 10
"""Rows of the table of samples."""


def seq2seq(
    spec: TaskSpec,
    *,
    prefix: str = "",
    target_length: int = 128,
    too_long: str = "truncate",
    label_smoothing: float = 0.0,
    metrics: Sequence[str] = METRICS,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Task:
    """Writes the target of each source, by the checkpoint's own output embedding.

    Args:
      spec: needs a text processor; the backbone is an encoder–decoder.
      prefix: put before each source, as the checkpoint was trained ("translate English to German: ").
      target_length: tokens of a target, its end included.
      too_long: "truncate" or "error", for longer targets.
      label_smoothing: part of each token's target spread evenly over the vocabulary, in training (Szegedy et al. 2016).
      metrics: of `bleu`, `chrf`, `rouge`; none of them, and evaluation writes no texts, which saves most of its time.
      max_new_tokens: tokens written at most; None is `target_length`.
      num_beams: beams of the search; 1 is greedy.
      length_penalty: scores of beams are divided by length ** length_penalty.
      early_stopping: see `tljax.models.generation.generate`.
      temperature: 0 takes the likeliest token; above it samples.
      top_k: sample among so many likeliest tokens; 0 among all.
      top_p: sample among the likeliest tokens that together have this probability.
      seed: of sampling.

    Returns:
      A `Task` whose predictions are the sums `nll`, `right`, `count` (B,) of the targets' tokens, and `tokens` (B, L).
      It is chosen by the first of `metrics`, or by `perplexity` where there is none.

    Raises:
      UserError: a backbone that is no encoder–decoder, no tokenizer or one of another vocabulary, options out of range.
    """
    length = target_length if max_new_tokens is None else max_new_tokens
    lengths = {"target_length": target_length, "max_new_tokens": length}
    _check(spec, metrics, label_smoothing, lengths, drawn=temperature > 0, searched=num_beams > 1)
    tokenizer = text_tokenizer(spec.processor)
    start = first_token(spec.config, tokenizer)
    head = _head(spec)
    search = dict(num_beams=num_beams, length_penalty=length_penalty, early_stopping=early_stopping)
    draw = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id or 0)
    written = partial(generate, max_new_tokens=length, decoder_start_token_id=start, **ends, **search, **draw)

    def infer(model, variables, batch):
        found = next_token_sums(model, variables, batch) if "targets" in batch else {}
        if found and not metrics:
            return found
        sources = {name: x for name, x in batch["inputs"].items() if name != "decoder_input_ids"}
        model = model._replace(head=head)
        return {**found, "tokens": written(model, variables, sources, rng=jax.random.key(seed)).tokens}

    def pairs(processor) -> SourceTarget:
        return SourceTarget(processor, start, target_length, prefix, too_long)

    def texts(predictions) -> list[str]:
        return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in predictions["tokens"]]

    def measure(predictions, targets, records):
        results = language_metrics(predictions)
        return {**results, **_compare(texts(predictions), records, metrics)} if metrics else results

    return Task(
        name="seq2seq",
        head=head.clone(lazy=True),
        own_head=True,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: _losses(outputs, targets, label_smoothing),
        weights=lambda batch: (batch["targets"] >= 0) * batch["weight"][:, None],
        predict=lambda outputs: {},
        metrics=measure,
        decode=lambda predictions, records: [{"prediction": text} for text in texts(predictions)],
        main=_main(metrics),
        prepare=lambda source, processor: (source, pairs(processor)),
        question=lambda source, processor: (source, dataclasses.replace(pairs(processor), labelled=False)),
        infer=infer,
    )


def _check(
    spec: TaskSpec, metrics: Sequence[str], smoothing: float, lengths: Mapping[str, Any], *, drawn: bool, searched: bool
) -> None:
    """Raises `UserError` for a backbone or options that do not fit."""
    if get_family(spec.family).cache is None or "encoder_hidden" not in spec.outputs:
        raise UserError(f"config.task: seq2seq needs an encoder–decoder, and {spec.family} is none.")
    faults = [f"metrics names {name!r}. {suggest(name, METRICS)}" for name in metrics if name not in METRICS]
    if not 0 <= smoothing < 1:
        faults.append(f"label_smoothing is {smoothing!r}; it must be from 0 up to, but not including, 1.")
    faults += [
        f"{name} is {value!r}; it must be a whole number from 1."
        for name, value in lengths.items()
        if type(value) is not int or value < 1
    ]
    if drawn and searched:
        faults.append("a temperature draws tokens, and num_beams searches for the best; choose one.")
    raise_faults("The section config.task cannot be used:", faults)


def _compare(found: Sequence[str], records: Sequence[Any], metrics: Sequence[str]) -> dict[str, Any]:
    """The measures of the written texts, and the first of them beside their sources and targets."""
    records = [records[i] for i in range(len(records))]
    numbers = text_metrics(found, [record["target_text"] for record in records], metrics)
    rows = zip(records[:SAMPLES], found, strict=False)
    samples = [{"source": r["text"], "target": r["target_text"], "prediction": text} for r, text in rows]
    return {**numbers, "samples": samples}


def _head(spec: TaskSpec) -> LanguageModel:
    """The checkpoint's own head; for a backbone alone that of its family, which knows how the output is scaled."""
    if isinstance(spec.head, LanguageModel):
        return spec.head
    heads = [format_.head(spec.config, {}) for format_ in get_family(spec.family).heads.values()]
    return next(head for head in heads if isinstance(head, LanguageModel))


def _main(metrics: Sequence[str]) -> tuple[str, str]:
    if not metrics:
        return "perplexity", "min"
    return {"rouge": "rougeL"}.get(metrics[0], metrics[0]), "max"


def _losses(outputs: Any, labels: jax.Array, smoothing: float) -> jax.Array:
    """(B, T), 0 where there is no label."""
    return losses.token_cross_entropy(
        outputs["features"],
        outputs["output_embedding"],
        outputs["output_bias"],
        jnp.asarray(labels),
        smoothing=smoothing,
    )[0]
