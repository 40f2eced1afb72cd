"""Extractive question answering: the part of a text that answers a question (Rajpurkar et al. 2016)."""

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import losses
from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source, Task
from tljax.data.questions import Spans, windows
from tljax.models.forward import forward
from tljax.models.heads import NEVER, SpanClassifier
from tljax.tasks.spec import TaskSpec, choose, choose_dropout

HEADS = ("new", "own")
SHOWN = 12


def question_answering(
    spec: TaskSpec,
    *,
    head: str = "new",
    stride: int = 64,
    n_best: int = 20,
    max_answer: int = 30,
    no_answer: bool = False,
    dropout: float | None = None,
) -> Task:
    """A start and a stop among the tokens of the context, by one dense layer.

    A context that is longer than the processor's `max_length` is read in overlapping windows. An answer's score is the
    sum of its two logits; the answer to a question is the best one over its windows. In training a window that does
    not hold the answer points to the first token (Devlin et al. 2019).

    Args:
      spec: needs a text processor with a fast tokenizer.
      head: "new", or "own": the checkpoint's.
      stride: tokens that neighbouring windows share.
      n_best: starts and stops that are looked at in a window, and answers that are kept for a question.
      max_answer: tokens of an answer at most.
      no_answer: whether a question may have none (SQuAD 2.0): it is "" where the first token has the better score.
      dropout: rate before the dense layer; None is the checkpoint's.

    Returns:
      A `Task` that is chosen by `f1`. Its predictions are the places `start` and `stop` (B, n_best) among a
      window's own tokens, their logits, and `null` (B,), the score of no answer.

    Raises:
      UserError: no tokenizer, options out of range, no own head.
    """
    options = {"stride": (stride, 0), "n_best": (n_best, 1), "max_answer": (max_answer, 1)}
    raise_faults(
        "The section config.task cannot be used:",
        [f"{n} is {x!r}; it must be a whole number from {least}." for n, (x, least) in options.items() if x < least],
    )
    if getattr(spec.processor, "tokenizer", None) is None:
        raise UserError("config.task: question_answering needs a checkpoint with a tokenizer.")
    module = SpanClassifier(choose_dropout(spec, dropout))
    own = choose("head", head, HEADS) == "own"
    if own and not isinstance(spec.head, SpanClassifier):
        raise UserError("config.task.head is 'own', but the checkpoint has no head for answers. Use head='new'.")

    def infer(model, variables, batch):
        outputs, _ = forward(model, variables, batch["inputs"])
        first = jnp.argmax(batch["inputs"]["attention_mask"] > 0, axis=1)[:, None]
        both = outputs["start_logits"] + outputs["stop_logits"]
        found = {"null": jnp.take_along_axis(both, first, axis=1)[:, 0]}
        for side in ("start", "stop"):
            logits = jnp.where(batch["context"] > 0, outputs[f"{side}_logits"], NEVER)
            count = min(n_best, logits.shape[1])
            values, places = jax.lax.top_k(logits, count)
            found[side] = jnp.pad(places - first, ((0, 0), (0, n_best - count)))
            found[f"{side}_logits"] = jnp.pad(values, ((0, 0), (0, n_best - count)), constant_values=NEVER)
        return found

    def answer(predictions, records):
        return answers(predictions, records, n_best=n_best, max_answer=max_answer, no_answer=no_answer)

    def prepare(labelled: bool):
        def run(source: Source, processor: Any) -> tuple[Source, Spans]:
            return windows(source, processor, stride), Spans(processor, labelled)

        return run

    return Task(
        name="question_answering",
        head=spec.head if own else module,
        own_head=own,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: sum(_side(outputs[f"{n}_logits"], targets[n]) for n in ("start", "stop")) / 2,
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {},
        metrics=lambda predictions, targets, records: measure(answer(predictions, records), records),
        decode=lambda predictions, records: answer(predictions, records),
        main=("f1", "max"),
        prepare=prepare(True),
        question=prepare(False),
        infer=infer,
    )


def _side(logits: jax.Array, place: jax.Array) -> jax.Array:
    return losses.softmax_cross_entropy(logits, jax.nn.one_hot(place, logits.shape[1]))


def answers(
    predictions: Mapping[str, np.ndarray],
    records: Sequence[Mapping[str, Any]],
    *,
    n_best: int,
    max_answer: int,
    no_answer: bool,
) -> list[dict[str, Any]]:
    """One dict a question, in the order of their first windows: `id`, `question`, `answer`, `probability`, `n_best`.

    `start` and `stop` are the answer's characters in the context, or None for no answer. Probabilities are a softmax
    over the scores of the answers that are kept.
    """
    found: dict[Any, list[tuple[float, int, int]]] = {}
    null: dict[Any, float] = {}
    asked = {}
    for i in range(len(records)):
        record = records[i]
        number = record["id"]
        asked.setdefault(number, record)
        null[number] = min(null.get(number, np.inf), float(predictions["null"][i]))
        found.setdefault(number, []).extend(_spans(record, {n: x[i] for n, x in predictions.items()}, max_answer))
    lines = []
    for number, record in asked.items():
        best = sorted(found[number], key=lambda span: -span[0])
        best = list({span[1:]: span for span in reversed(best)}.values())[::-1][:n_best]
        best = [(score, start, stop, record["context"][start:stop]) for score, start, stop in best]
        if no_answer:
            best = sorted([*best, (null[number], None, None, "")], key=lambda span: -span[0])[:n_best]
        best = best or [(0.0, None, None, "")]
        scores = np.array([span[0] for span in best])
        chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        listed = [
            {"answer": text, "probability": round(float(chance), 6), "start": start, "stop": stop}
            for (_, start, stop, text), chance in zip(best, chances, strict=True)
        ]
        lines.append({"id": number, "question": record["question"], **listed[0], "n_best": listed})
    return lines


def _spans(record: Mapping[str, Any], found: Mapping[str, Any], most: int) -> list[tuple[float, int, int]]:
    """(score, first character, one after the last) of the answers of a window."""
    starts, stops = np.meshgrid(found["start"], found["stop"], indexing="ij")
    scores = found["start_logits"][:, None].astype(np.float64) + found["stop_logits"][None]
    real = (found["start_logits"] > NEVER)[:, None] & (found["stop_logits"] > NEVER)[None]
    keep = np.flatnonzero((real & (stops >= starts) & (stops - starts < most)).ravel())
    offsets = record["offsets"]
    return [(float(scores.flat[k]), int(offsets[starts.flat[k], 0]), int(offsets[stops.flat[k], 1])) for k in keep]


def measure(lines: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`f1` and `exact_match`, each the best over a question's true answers, mean over the questions."""
    wanted = {}
    for i in range(len(records)):
        wanted.setdefault(records[i]["id"], records[i]["answers"] or [""])
    f1, exact = [], []
    for line in lines:
        f1.append(max(overlap(line["answer"], answer) for answer in wanted[line["id"]]))
        exact.append(max(float(plain(line["answer"]) == plain(answer)) for answer in wanted[line["id"]]))
    samples = [
        {"question": line["question"], "answer": line["answer"], "true": wanted[line["id"]][0], "F1": score}
        for line, score in zip(lines[:SHOWN], f1, strict=False)
    ]
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact)), "samples": samples}


def plain(text: str) -> str:
    """`text` in lower case, without punctuation, English articles and extra spaces (Rajpurkar et al. 2016)."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def overlap(given: str, true: str) -> float:
    """The F1 of the words that two answers share; two empty ones agree."""
    a, b = plain(given).split(), plain(true).split()
    if not a or not b:
        return float(a == b)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b))
