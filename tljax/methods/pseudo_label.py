"""Pseudo-labels: what the model is confident about counts as if it were labelled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.methods.common import class_count, mean_loss, supervised_loss, together
from tljax.methods.fixmatch import faults_of, pseudo_labels, share_of


def pseudo_label(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    threshold: float = 0.95,
    weight: float = 1.0,
    ramp: tuple[int, int] = (0, 0),
) -> Method:
    """Labelled examples as in `supervised`, and unlabelled ones with the class that the model gives them itself.

    Lee 2013, Pseudo-label (ICML workshop on challenges in representation learning). He takes all examples
    (`threshold=0`) and raises the weight slowly to 3. The class is that of the same forward pass, in training mode, as
    the loss, and there is no gradient through it. The mean is over all unlabelled examples of the batch.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: classification with one class an example.
      threshold: the least probability of a class that counts; 0 takes all.
      weight: of the loss of the unlabelled examples.
      ramp: (first, last) step: the weight is 0 up to the first, rises along a line, and is whole from the last on.

    Returns:
      A `Method` that reads the streams `train` and `unlabelled`, with the losses `task` and `unlabelled`, and the
      metrics `above_threshold`, the share of unlabelled examples that count, and `unlabelled_weight`.

    Raises:
      UserError: options out of range, all in one message; a task that gives an example not just one class.
    """
    faults = faults_of(threshold, weight, None)
    if len(ramp) != 2 or not all(isinstance(step, int) for step in ramp) or not 0 <= ramp[0] <= ramp[1]:
        faults.append(f"ramp is {tuple(ramp)!r}; it must be (first, last), two steps from 0, in this order.")
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        class_count(task, shapes, "pseudo_label")
        return {}, {}

    def loss(params, state, batches, rng, step):
        labelled, batch = batches["train"], batches["unlabelled"]
        inputs = [task.inputs(labelled), task.inputs(batch)]
        (known, unknown), state = together(forward, params, state, inputs, rng)
        targets, _, confidence = pseudo_labels(unknown["logits"])
        counts = confidence >= threshold
        each = losses.softmax_cross_entropy(unknown["logits"], targets) * counts
        scale = weight * line(step, *ramp)
        found = {
            "task": supervised_loss(task, known, labelled, name="pseudo_label"),
            "unlabelled": mean_loss(each, batch["weight"], scale),
        }
        metrics = {"above_threshold": share_of(counts, batch["weight"]), "unlabelled_weight": scale}
        return found, state, metrics

    return Method(loss=loss, init=init, streams={"train": "labelled", "unlabelled": "unlabelled"})


def line(step: Any, first: int, last: int) -> jax.Array:
    """0 up to the step `first`, 1 from the step `last` on, and a straight line between; 1 from `first` on if equal."""
    step = jnp.asarray(step, jnp.float32)
    if first == last:
        return jnp.where(step >= first, 1.0, 0.0)
    return jnp.clip((step - first) / (last - first), 0.0, 1.0)
