"""FixMatch: what is confident about a weakly changed example is the label of a strongly changed one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.methods.common import class_count, mean_loss, negative_faults, supervised_loss, together, view_inputs

VIEWS = ("weak", "strong")


def fixmatch(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    threshold: float = 0.95,
    weight: float = 1.0,
    temperature: float | None = None,
) -> Method:
    """Labelled examples as in `supervised`, and unlabelled ones in two views (Sohn et al. 2020, arXiv 2001.07685).

    The class that the model gives the view `weak` is the label of the view `strong`, where its probability reaches
    `threshold`; the mean is over all unlabelled examples of the batch, those below the threshold included. There is no
    gradient through the weak view. A model with batch norm sees all three in one pass, and its statistics are theirs
    together. Any other one sees the weak view in a pass of its own, so that nothing of it goes backward. The paper has
    several unlabelled examples for each labelled one: that is `config.data.unlabelled.batch_size`.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: classification with one class an example.
      threshold: the least probability of a label that counts; 0 takes all.
      weight: of the loss of the unlabelled examples.
      temperature: None takes the likeliest class; a number takes the probabilities, sharpened by it (Xie et al. 2020,
        arXiv 1904.12848), where the likeliest one reaches the threshold before sharpening.

    Returns:
      A `Method` that reads the streams `train` and `unlabelled`, the latter with the views `weak` and `strong`, with
      the losses `task` and `unlabelled`, and the metric `above_threshold`, the share of unlabelled examples that count.

    Raises:
      UserError: options out of range, all in one message; a task that gives an example not just one class.
    """
    raise_faults("The section config.method cannot be used:", faults_of(threshold, weight, temperature))

    def init(rng, shapes):
        class_count(task, shapes, "fixmatch")
        return {}, {}

    def loss(params, state, batches, rng, step):
        labelled, batch = batches["train"], batches["unlabelled"]
        known, weak, strong, state = three_parts(forward, task, params, state, labelled, batch, rng)
        targets, _, confidence = pseudo_labels(weak, temperature)
        counts = confidence >= threshold
        each = losses.softmax_cross_entropy(strong, targets) * counts
        found = {
            "task": supervised_loss(task, known, labelled, name="fixmatch"),
            "unlabelled": mean_loss(each, batch["weight"], weight),
        }
        return found, state, {"above_threshold": share_of(counts, batch["weight"])}

    return Method(
        loss=loss,
        init=init,
        streams={"train": "labelled", "unlabelled": "unlabelled"},
        views={"unlabelled": VIEWS},
    )


def faults_of(threshold: float, weight: float, temperature: float | None) -> list[str]:
    """What is wrong with the options that pseudo-labels have in common."""
    faults = [] if 0 <= threshold <= 1 else [f"threshold is {threshold!r}; it must be from 0 to 1."]
    faults += negative_faults(weight=weight)
    if temperature is not None and temperature <= 0:
        faults.append(f"temperature is {temperature!r}; it must be None (the likeliest class) or above 0.")
    return faults


def three_parts(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    params: Any,
    state: Any,
    labelled: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: jax.Array,
) -> tuple[Mapping[str, Any], jax.Array, jax.Array, Any]:
    """(outputs of the labelled batch, logits of the weak and of the strong views, state); see `fixmatch`."""
    given, weak, strong = task.inputs(labelled), *(view_inputs(task, batch, name) for name in VIEWS)
    if jax.tree.leaves(state["batch_stats"]):
        (known, weak, strong), state = together(forward, params, state, [given, weak, strong], rng)
    else:
        # Rows do not see each other here, and those of the weak view would be nearly half of the way back.
        rng, apart = jax.random.split(rng)
        weak, _ = forward(jax.lax.stop_gradient(params), state, weak, apart)
        (known, strong), state = together(forward, params, state, [given, strong], rng)
    return known, weak["logits"], strong["logits"], state


def pseudo_labels(logits: jax.Array, temperature: float | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(targets (B, Y), classes (B,) int32, their probabilities (B,)) that the model gives; there is no gradient.

    Args:
      logits: (B, Y).
      temperature: see `fixmatch`.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    labels = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    hard = temperature is None
    targets = jax.nn.one_hot(labels, logits.shape[-1]) if hard else jax.nn.softmax(logits / temperature)
    return targets, labels, jnp.max(jax.nn.softmax(logits), axis=-1)


def share_of(counts: jax.Array, weight: jax.Array) -> jax.Array:
    """The share of the real rows, those with a weight, that count."""
    real = weight > 0
    return jnp.sum(counts & real) / jnp.maximum(jnp.sum(real), 1)
