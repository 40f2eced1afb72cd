"""Adapting a trained classifier to new data without labels. Wang et al. 2021, Tent, ICLR, arXiv 2006.10726."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.types import Method, Task
from tljax.methods.common import class_count, mean_loss


def tent(forward: Callable[..., tuple[Any, Any]], task: Task) -> Method:
    """The mean entropy of the predictions on `train`, unlabelled data of the target, is lowered.

    The model is a classifier that was trained before, on data that are not there any more (config.task.head="own"). The
    strategy says what moves; the paper moves the scales and shifts of the norms alone, and normalises by the statistics
    of the batch:

        config.strategy = dict(freeze=dict(rules=[(".*norm.*", "live"), (".*", "frozen")], batch_stats="train"))

    With batch_stats="train" a batch norm uses the statistics of the batch in a step, and its running statistics, which
    an evaluation uses, follow the target. A stage with a live leaf is in training mode: a checkpoint's dropout is then
    on in it. Where more moves than the norms, all examples may end up in one class; the report warns of it.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: that gives each example one class.

    Returns:
      A `Method` with the loss `entropy`, in nats, and the metrics `entropy` and `confidence`, the mean of the largest
      probability.

    Raises:
      UserError: another task; a head that nothing has trained.
    """

    def init(rng, shapes):
        class_count(task, shapes, "tent")
        return {}, {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        weight = jnp.asarray(batch["weight"])
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        each = entropy(outputs["logits"])
        largest = jnp.max(jax.nn.softmax(outputs["logits"].astype(jnp.float32)), axis=-1)
        total = jnp.maximum(jnp.sum(weight), 1e-9)
        metrics = {"entropy": jnp.sum(each * weight) / total, "confidence": jnp.sum(largest * weight) / total}
        return {"entropy": mean_loss(each, weight)}, state, metrics

    return Method(loss=loss, init=init, streams={"train": "unlabelled"}, trained_head=True)


def entropy(logits: jax.Array) -> jax.Array:
    """−Σ p log p of the softmax of logits (B, Y), (B,), in nats and float32."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)
