"""One or several of a fixed set of classes for each example."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import losses, metrics
from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.models.heads import STARTS, Classifier, vector
from tljax.tasks.spec import TaskSpec, choose, choose_dropout, choose_pool, output_of


def classification(
    spec: TaskSpec,
    *,
    labels: str = "single",
    head: str = "new",
    pool: str = "own",
    normalize: bool = False,
    dropout: float | None = None,
    init: str = "zeros",
    threshold: float = 0.5,
) -> Task:
    """Classification by one dense layer on a pooled vector.

    Class and sample weights come with the batches, in `weight`.

    Args:
      spec: needs `classes`.
      labels: "single": softmax, one class an example; "multi": one independent decision a class.
      head: "new", or "own": the checkpoint's own classifier, which must have as many classes as the data. The
        options from `pool` to `init` describe a new head.
      pool: one of `spec.pools`, or "own".
      normalize: scale the pooled vector to length 1 first.
      dropout: rate before the dense layer; None is the checkpoint's.
      init: "zeros", "normal" (truncated, deviation 0.02) or "he" (deviation √(2 / D)).
      threshold: the probability from which a class counts as predicted, with several labels.

    Returns:
      A `Task` whose predictions are `probabilities` (B, Y) and `label` (B,), or `labels` (B, Y) with 0 and 1; it is
      chosen by `accuracy`, or by `micro_f1` where there are several labels.

    Raises:
      UserError: data without classes, unknown options, no own head, or one with other classes.
    """
    if spec.classes is None:
        raise UserError("config.task: classification needs data with classes, and the labels here have no names.")
    multi = choose("labels", labels, ("single", "multi")) == "multi"
    if choose("head", head, ("new", "own")) == "own":
        module = _own_head(spec)
        pool = getattr(module, "pool", spec.own_pool)
        uses = output_of(pool)
    else:
        pool = choose_pool(spec, pool)
        init = choose("init", init, tuple(STARTS))
        module = Classifier(len(spec.classes), pool, normalize, choose_dropout(spec, dropout), init)
        uses = output_of(pool)
    pool = pool if pool in spec.pools else "mean"
    common = {
        "feature": partial(vector, how=pool, normalized=normalize),
        "name": "classification",
        "head": module,
        "uses": uses,
        "inputs": lambda batch: batch["inputs"],
        "weights": lambda batch: batch["weight"],
    }
    return _multi(spec.classes, threshold, common) if multi else _single(spec.classes, common)


def _single(classes: tuple[str, ...], common: Mapping[str, Any]) -> Task:
    def predict(outputs):
        logits = outputs["logits"].astype(jnp.float32)
        return {"probabilities": jax.nn.softmax(logits), "label": jnp.argmax(logits, axis=-1).astype(jnp.int32)}

    def measure(predictions, targets, records):
        return metrics.classification(targets, predictions["label"], predictions["probabilities"], classes)

    def decode(predictions, records):
        return [
            {"label": classes[int(label)], "probabilities": by_class(classes, probabilities)}
            for label, probabilities in zip(predictions["label"], predictions["probabilities"], strict=True)
        ]

    return Task(
        targets=lambda batch: jax.nn.one_hot(batch["targets"], len(classes), dtype=jnp.float32),
        loss=lambda outputs, targets: losses.softmax_cross_entropy(outputs["logits"], targets),
        predict=predict,
        metrics=measure,
        decode=decode,
        main=("accuracy", "max"),
        **common,
    )


def _multi(classes: tuple[str, ...], threshold: float, common: Mapping[str, Any]) -> Task:
    def predict(outputs):
        probabilities = jax.nn.sigmoid(outputs["logits"].astype(jnp.float32))
        return {"probabilities": probabilities, "labels": (probabilities >= threshold).astype(jnp.int32)}

    def measure(predictions, targets, records):
        return metrics.multi_label(targets, predictions["labels"], classes)

    def decode(predictions, records):
        return [
            {
                "labels": [name for name, on in zip(classes, np.asarray(labels), strict=True) if on],
                "probabilities": by_class(classes, probabilities),
            }
            for labels, probabilities in zip(predictions["labels"], predictions["probabilities"], strict=True)
        ]

    return Task(
        targets=lambda batch: jnp.asarray(batch["targets"], jnp.float32),
        loss=lambda outputs, targets: losses.binary_cross_entropy(outputs["logits"], targets),
        predict=predict,
        metrics=measure,
        decode=decode,
        main=("micro_f1", "max"),
        **common,
    )


def by_class(classes: tuple[str, ...], probabilities: Any) -> dict[str, float]:
    """(Y,) probabilities as {class: probability}, to six decimals."""
    values = np.asarray(probabilities, np.float64)
    return {name: round(float(value), 6) for name, value in zip(classes, values, strict=True)}


def _own_head(spec: TaskSpec) -> Any:
    count = getattr(spec.head, "classes", None)
    if count is None:
        held = f"its head is a {type(spec.head).__name__}" if spec.head is not None else "it has no head"
        raise UserError(f"config.task.head is 'own', but the checkpoint has no classifier: {held}. Use head='new'.")
    if count != len(spec.classes):
        raise UserError(
            f"config.task.head is 'own', but the checkpoint's classifier has {count} classes and the data have "
            f"{len(spec.classes)} ({', '.join(spec.classes[:8])}{', …' if len(spec.classes) > 8 else ''}). "
            "Use head='new'."
        )
    return spec.head
