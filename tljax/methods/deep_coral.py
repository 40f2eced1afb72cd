"""Correlation alignment in deep networks. Sun and Saenko 2016, ECCV workshops, arXiv 1607.01719."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tljax import domains
from tljax.base.errors import raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import (
    TWO_DOMAINS,
    feature_width,
    logits_width,
    negative_faults,
    source_and_target,
    supervised_loss,
)

PLACES = ("feature", "logits")


def deep_coral(
    forward: Callable[..., tuple[Any, Any]], task: Task, *, weight: float = 1.0, place: str = "feature"
) -> Method:
    """The task is learnt on the source domain, with the covariances of both domains made alike.

    The loss is ‖C_S − C_T‖² / (4 D²), of the covariances C of the batch. It is a statistic of the batch: of a batch in
    accumulated parts each part has its own.

    Args:
      forward: see `Method`.
      task: any with one input an example.
      weight: of the loss; the paper sets it so that both losses are about equal at the end of the training.
      place: "feature", the vector that the head reads, or "logits", as in the paper.

    Returns:
      A `Method` with the streams `train` (labelled) and `target` (unlabelled) and the losses `task` and `coral`.

    Raises:
      UserError: options out of range; a model without such vectors.
    """
    faults = negative_faults(weight=weight)
    faults += [f"place is {place!r}. Accepted: {', '.join(PLACES)}."] * (place not in PLACES)
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        (feature_width if place == "feature" else logits_width)(shapes, "deep_coral")
        return {}, {}

    def loss(params, state, batches, rng, step):
        source, target, state = source_and_target(forward, task, params, state, batches, rng)
        rows = [task.feature(x) if place == "feature" else x["logits"] for x in (source, target)]
        weights = [jnp.asarray(batches[name]["weight"]) for name in ("train", "target")]
        count = jnp.sum(weights[0]) + jnp.sum(weights[1])
        task_loss = supervised_loss(task, source, batches["train"], name="deep_coral")
        coral = Loss(weight * domains.coral(*rows, *weights) * count, count)
        return {"task": task_loss, "coral": coral}, state, {}

    return Method(loss=loss, init=init, **TWO_DOMAINS)
