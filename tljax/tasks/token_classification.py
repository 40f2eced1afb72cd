"""A class for every word: named entities, parts of speech."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import losses
from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Task
from tljax.data.conll import OUTSIDE, well_formed
from tljax.data.tagging import Tagging, words_of
from tljax.models.forward import forward
from tljax.models.heads import STARTS, TokenClassifier
from tljax.tasks.spec import TaskSpec, choose, choose_dropout

SCHEMES = ("bio", "plain")


def token_classification(
    spec: TaskSpec, *, scheme: str = "bio", dropout: float | None = None, init: str = "zeros"
) -> Task:
    """One dense layer on the first token of each word.

    Args:
      spec: needs `classes` (the tags) and a text processor with a fast tokenizer.
      scheme: "bio": the tags are O, B-KIND and I-KIND, and whole entities are counted as conlleval does (seqeval);
        "plain": every tag is for itself.
      dropout: rate before the dense layer; None is the checkpoint's.
      init: "zeros", "normal" or "he".

    Returns:
      A `Task` whose predictions are `label` (B, T) and `words` (B, T), which word a token begins, from 1 on. With
      "bio" it is chosen by `f1`, the micro average over entities; words that were cut off count as O. With "plain" it
      is chosen by `token_accuracy`.

    Raises:
      UserError: data without tags, tags that are not of the scheme, an unknown option.
    """
    if spec.classes is None:
        raise UserError("config.task: token_classification needs data with tags.")
    if choose("scheme", scheme, SCHEMES) == "bio":
        check_scheme(spec.classes)
    if getattr(spec.processor, "tokenizer", None) is None:
        raise UserError("config.task: token_classification needs a checkpoint with a tokenizer.")
    names = spec.classes

    def by_word(predictions, records):
        """Tags of all words, a list a record."""
        outside = names.index(OUTSIDE) if OUTSIDE in names else 0
        found = []
        for labels, words, record in zip(predictions["label"], predictions["words"], records, strict=True):
            tags = np.full(len(words_of(record)), outside)
            tags[words[words > 0] - 1] = labels[words > 0]
            found.append([names[tag] for tag in tags])
        return found

    def measure(predictions, targets, records):
        records = [records[i] for i in range(len(records))]
        wanted = [[names[tag] for tag in record["tags"]] for record in records]
        guessed = by_word(predictions, records)
        return _entities(wanted, guessed) if scheme == "bio" else _words(wanted, guessed)

    def decode(predictions, records):
        records = [records[i] for i in range(len(records))]
        tagged = zip(by_word(predictions, records), records, strict=True)
        lines = [{"tokens": words_of(record), "tags": tags} for tags, record in tagged]
        if scheme == "bio":
            lines = [{**line, "entities": entities(line["tokens"], line["tags"])} for line in lines]
        return lines

    def infer(model, variables, batch):
        outputs, _ = forward(model, variables, batch["inputs"])
        return {"label": jnp.argmax(outputs["logits"], axis=-1).astype(jnp.int32), "words": batch["words"]}

    return Task(
        name="token_classification",
        head=TokenClassifier(len(names), choose_dropout(spec, dropout), choose("init", init, tuple(STARTS))),
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: jax.nn.one_hot(batch["targets"], len(names)),
        loss=lambda outputs, targets: losses.softmax_cross_entropy(outputs["logits"], targets),
        weights=lambda batch: (batch["targets"] >= 0) * batch["weight"][:, None],
        predict=lambda outputs: {},
        metrics=measure,
        decode=decode,
        main=("f1", "max") if scheme == "bio" else ("token_accuracy", "max"),
        prepare=lambda source, processor: (source, Tagging(processor)),
        infer=infer,
    )


def check_scheme(names: Sequence[str]) -> None:
    """Raises `UserError` where `names` are not O, B-KIND and I-KIND."""
    faults = [f"{name!r} is no tag of the form O, B-KIND or I-KIND." for name in names if not well_formed(name)]
    faults += ["there is no tag O, for words outside of entities."] * (OUTSIDE not in names)
    raise_faults("The tags do not follow BIO; set config.task.scheme='plain' if they are no entities:", faults)


def entities(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities that the tags of a sentence mark: `kind`, `text`, `start` and `stop` in words."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [
        {"kind": kind, "text": " ".join(words[start : stop + 1]), "start": start, "stop": stop + 1}
        for kind, start, stop in get_entities(list(tags))
    ]


def _entities(wanted: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Micro averages over entities, a row a kind, and the share of right words."""
    from seqeval.metrics import accuracy_score, classification_report

    report = classification_report(wanted, guessed, output_dict=True, zero_division=0)
    micro = report.get("micro avg", {"precision": 0.0, "recall": 0.0, "f1-score": 0.0})
    rows = [_row(kind, values) for kind, values in report.items() if not kind.endswith(" avg")]
    return {
        "f1": float(micro["f1-score"]),
        "precision": float(micro["precision"]),
        "recall": float(micro["recall"]),
        "token_accuracy": float(accuracy_score(wanted, guessed)),
        "per_class": rows,
    }


def _row(kind: str, values: Mapping[str, float]) -> dict[str, Any]:
    numbers = {name: float(values[name]) for name in ("precision", "recall")}
    return {"class": str(kind), **numbers, "f1": float(values["f1-score"]), "count": int(values["support"])}


def _words(wanted: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Accuracy over words, and a row a tag."""
    from sklearn.metrics import classification_report

    flat = [[tag for tags in side for tag in tags] for side in (wanted, guessed)]
    report = classification_report(*flat, output_dict=True, zero_division=0)
    rows = [_row(k, v) for k, v in report.items() if isinstance(v, Mapping) and not k.endswith(" avg")]
    right = np.mean([a == b for a, b in zip(*flat, strict=True)])
    return {"token_accuracy": float(right), "macro_f1": float(report["macro avg"]["f1-score"]), "per_class": rows}
