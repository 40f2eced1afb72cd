"""Minimum class confusion. Jin, Wang, Long and Wang 2020, ECCV, arXiv 1912.03699. Axes: B batch, Y classes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.cdan import certainty
from tljax.methods.common import TWO_DOMAINS, class_count, negative_faults, source_and_target, supervised_loss


def mcc(
    forward: Callable[..., tuple[Any, Any]], task: Task, *, weight: float = 1.0, temperature: float = 2.5
) -> Method:
    """The task is learnt on the source domain, with predictions on the target that confuse few classes.

    It is a statistic of the batch: of a batch in accumulated parts each part has its own.

    Args:
      forward: see `Method`.
      task: classification, one class an example.
      weight: of the confusion.
      temperature: that the target's logits are divided by.

    Returns:
      A `Method` with the streams `train` (labelled) and `target` (unlabelled), and the losses `task` and `confusion`,
      from 0 to 1 − 1 / Y.

    Raises:
      UserError: options out of range; another kind of task.
    """
    faults = negative_faults(weight=weight)
    faults += [f"temperature is {temperature!r}; it must be above 0."] * (not temperature > 0)
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        class_count(task, shapes, "mcc")
        return {}, {}

    def loss(params, state, batches, rng, step):
        source, target, state = source_and_target(forward, task, params, state, batches, rng)
        rows = jnp.asarray(batches["target"]["weight"])
        count = jnp.sum(rows)
        confusion = Loss(weight * class_confusion(target["logits"], rows, temperature) * count, count)
        task_loss = supervised_loss(task, source, batches["train"], name="mcc")
        return {"task": task_loss, "confusion": confusion}, state, {}

    return Method(loss=loss, init=init, **TWO_DOMAINS)


def class_confusion(logits: jax.Array, weight: jax.Array, temperature: float) -> jax.Array:
    """The mean over classes of the share of a class's predicted mass that lies on other classes.

    C = Pᵀ W P of the predictions P = softmax(z / `temperature`), whose rows are then divided by their sums; W holds
    1 + exp(−entropy) of each example, through which no gradient goes.

    Args:
      logits: z, (B, Y).
      weight: (B,).
    """
    shares = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    sure = certainty(jax.lax.stop_gradient(shares)) * weight
    # Their scale cancels below; with a mean of 1 no sum is small because the batch is.
    sure = sure / jnp.maximum(jnp.mean(sure), 1e-9)
    together = jnp.matmul((shares * sure[:, None]).T, shares, precision="highest")
    together = together / jnp.maximum(jnp.sum(together, axis=1, keepdims=True), 1e-30)
    return (jnp.sum(together) - jnp.trace(together)) / len(together)
