"""FlexMatch: FixMatch with a threshold for each class, lower where the model has learnt less."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.methods.common import class_count, mean_loss, supervised_loss
from tljax.methods.fixmatch import VIEWS, faults_of, pseudo_labels, share_of, three_parts


def flexmatch(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    threshold: float = 0.95,
    weight: float = 1.0,
    temperature: float | None = None,
    warm_up: bool = True,
) -> Method:
    """As `fixmatch`, with curriculum pseudo-labels (Zhang et al. 2021, arXiv 2110.08263).

    The state remembers of each unlabelled example the class that it was last given with a probability of at least
    `threshold`. A class c that σ(c) examples have been given has the threshold M(β(c)) · `threshold`, where β(c) is
    σ(c) over the largest σ, and M(β) = β / (2 − β). The thresholds of a step are those of the examples seen before it,
    so that accumulated parts have the same ones as the whole batch; of an example that stands in a batch several times
    the last confident row is remembered.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: classification with one class an example.
      threshold: that of the best learnt class, and the probability from which a class is remembered.
      weight: of the loss of the unlabelled examples.
      temperature: see `fixmatch`.
      warm_up: while more examples have no class yet than the largest σ, β is over their number instead, so that all
        thresholds rise from 0 slowly.

    Returns:
      A `Method` that reads the streams `train` and `unlabelled`, the latter with the views `weak` and `strong`, with
      the losses `task` and `unlabelled`; and the metrics `above_threshold`, the share of unlabelled examples of the
      batch that count, `remembered`, the share of all that have a class, and `mean_threshold` over the classes.

    Raises:
      UserError: options out of range, all in one message; a task that gives an example not just one class.
    """
    raise_faults("The section config.method cannot be used:", faults_of(threshold, weight, temperature))

    def init(rng, shapes):
        # Nobody has been given a class yet: as `class_thresholds` says, too.
        return {}, {"thresholds": jnp.zeros(class_count(task, shapes, "flexmatch"))}

    def start(state, live, counts):
        return {**state, "selected": jnp.full(counts["unlabelled"], -1, jnp.int32)}

    def loss(params, state, batches, rng, step):
        labelled, batch = batches["train"], batches["unlabelled"]
        known, weak, strong, state = three_parts(forward, task, params, state, labelled, batch, rng)
        thresholds, selected = state["method"]["thresholds"], state["method"]["selected"]
        targets, labels, confidence = pseudo_labels(weak, temperature)
        counts = confidence >= thresholds[labels]
        each = losses.softmax_cross_entropy(strong, targets) * counts
        confident = (confidence >= threshold) & (jnp.asarray(batch["weight"]) > 0)
        selected = remember(selected, jnp.asarray(batch["index"]), labels, confident)
        found = {
            "task": supervised_loss(task, known, labelled, name="flexmatch"),
            "unlabelled": mean_loss(each, batch["weight"], weight),
        }
        metrics = {
            "above_threshold": share_of(counts, batch["weight"]),
            "remembered": jnp.mean(selected >= 0),
            "mean_threshold": jnp.mean(thresholds),
        }
        return found, {**state, "method": {**state["method"], "selected": selected}}, metrics

    def after_step(state, live, step):
        scale = class_thresholds(state["selected"], len(state["thresholds"]), warm_up=warm_up)
        return {**state, "thresholds": threshold * scale}

    return Method(
        loss=loss,
        init=init,
        start=start,
        after_step=after_step,
        streams={"train": "labelled", "unlabelled": "unlabelled"},
        views={"unlabelled": VIEWS},
    )


def remember(selected: jax.Array, index: jax.Array, labels: jax.Array, confident: jax.Array) -> jax.Array:
    """`selected` (N,) with the labels of the confident rows at their `index`; the last of several rows wins.

    Args:
      selected: (N,), int32, −1 for none.
      index, labels, confident: (B,).
    """
    count = selected.shape[0]
    # A scatter that sets would leave it open which of several rows with one index comes last; a maximum does not.
    rows = jnp.arange(index.shape[0], dtype=jnp.int32)
    last = jnp.full(count, -1, jnp.int32).at[jnp.where(confident, index, count)].max(rows, mode="drop")
    return jnp.where(last >= 0, labels[last], selected)


def class_thresholds(selected: jax.Array, classes: int, *, warm_up: bool) -> jax.Array:
    """M(β(c)) of each class, (Y,) from 0 to 1; see `flexmatch`.

    Args:
      selected: (N,), the class of each example, −1 for none.
      classes: Y.
      warm_up: see `flexmatch`.
    """
    given = selected >= 0
    sizes = jnp.zeros(classes, jnp.int32).at[jnp.where(given, selected, classes)].add(1, mode="drop")
    most = jnp.max(sizes)
    if warm_up:
        most = jnp.maximum(most, jnp.sum(~given))
    share = sizes / jnp.maximum(most, 1)
    return share / (2 - share)
