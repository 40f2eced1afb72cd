"""Learning from labels."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import negative_faults

MASKS = ("attention_mask",)


def supervised(
    forward: Callable[..., tuple[Any, Any]], task: Task, *, label_smoothing: float = 0.0, mixup: float = 0.0
) -> Method:
    """The task's loss on labelled examples, weighted.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: `Task`.
      label_smoothing: the part of each target spread evenly over the classes (Szegedy et al. 2016); for single
        labels.
      mixup: α of the Beta(α, α) from which one λ a batch is drawn; inputs and targets become λ · their own +
        (1 − λ) · another example's (Zhang et al. 2018). For floating inputs: pixels, waveforms.

    Returns:
      A `Method` with the loss `task` and, where the task predicts one label and nothing is mixed, the metric
      `accuracy` of the batch.

    Raises:
      UserError: options out of range; when traced, token ids with mixup, or targets that cannot be smoothed.
    """
    raise_faults(
        "The section config.method cannot be used:",
        [f"label_smoothing is {label_smoothing!r}; it must be from 0 up to, but not including, 1."]
        * (not 0 <= label_smoothing < 1)
        + negative_faults(mixup=mixup),
    )

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        _check(batch, label_smoothing, mixup)
        mix_key, forward_key = jax.random.split(rng)
        targets, weights = jax.tree.map(jnp.asarray, task.targets(batch)), jnp.asarray(task.weights(batch))
        if label_smoothing:
            targets = losses.smooth(targets, label_smoothing)
        inputs = batch["inputs"]
        if mixup:
            inputs, targets, weights = mix(mix_key, inputs, targets, weights, mixup)
        outputs, state = forward(params, state, task.inputs({**batch, "inputs": inputs}), forward_key, train=True)
        each = task.loss(outputs, targets)
        result = Loss(jnp.sum(each * weights), jnp.sum(weights))
        return {"task": result}, state, {} if mixup else _accuracy(task, outputs, batch)

    return Method(loss=loss, changes_inputs=mixup > 0)


def mix(
    rng: jax.Array, inputs: Mapping[str, Any], targets: jax.Array, weights: jax.Array, alpha: float
) -> tuple[dict[str, Any], jax.Array, jax.Array]:
    """Mixup of a batch: (inputs, targets, weights), each of the shape it had.

    Example i with weight w_i and its partner j share the weight λ · w_i + (1 − λ) · w_j, and the target is their mean
    in that proportion, so that a loss linear in the targets is λ · w_i · ℓ(x̃, t_i) + (1 − λ) · w_j · ℓ(x̃, t_j), and
    the sum of the weights stays. Padding rows (weight 0) are mixed among themselves only.

    Args:
      rng: key.
      inputs: floating arrays (B, …); an attention mask becomes the union of the two.
      targets: (B,) or (B, Y), floating.
      weights: (B,).
      alpha: of the Beta distribution.
    """
    beta_key, order_key = jax.random.split(rng)
    share = jax.random.beta(beta_key, alpha, alpha)
    partner = _partners(order_key, weights > 0)

    def blend(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.maximum(x, x[partner])
        return (share * x + (1 - share) * x[partner]).astype(x.dtype)

    own, other = share * weights, (1 - share) * weights[partner]
    total = own + other
    part = (own / jnp.where(total > 0, total, 1)).reshape(-1, *(1,) * (targets.ndim - 1))
    mixed = part * targets + (1 - part) * targets[partner]
    return {name: blend(jnp.asarray(x)) for name, x in inputs.items()}, mixed, total


def _partners(rng: jax.Array, real: jax.Array) -> jax.Array:
    """A random permutation that maps real rows to real rows and padding to padding."""
    count = real.shape[0]
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(rng, (count,)), 2.0))
    in_order = jnp.argsort(jnp.where(real, 0, 1), stable=True)
    return jnp.zeros(count, shuffled.dtype).at[in_order].set(shuffled)


def _check(batch: Mapping[str, Any], label_smoothing: float, mixup: float) -> None:
    """Raises `UserError` for a batch (of arrays or of shapes) that the options do not allow."""
    if "targets" not in batch:
        raise UserError("The method supervised needs labels, and the records of config.data.train have none.")
    faults = []
    targets = batch["targets"]
    if label_smoothing and not _one_label(targets):
        faults.append(
            "label_smoothing spreads one label over the classes; these targets are numbers, sets or sequences of "
            "labels. Set it to 0."
        )
    tokens = [
        name for name, x in batch["inputs"].items() if name not in MASKS and not jnp.issubdtype(x.dtype, jnp.floating)
    ]
    if mixup and isinstance(targets, Mapping):
        faults.append("mixup averages targets, and these are several arrays an example. Set it to 0.")
    if mixup and tokens:
        faults.append(
            f"mixup averages inputs, and {', '.join(tokens)} hold ids: the mean of two token ids is another token. "
            "Set it to 0."
        )
    raise_faults("The section config.method does not fit the data:", faults)


def _one_label(targets: Any) -> bool:
    """Whether each example has one class, (B,)."""
    return not isinstance(targets, Mapping) and targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer)


def _accuracy(task: Task, outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{"accuracy": share of the real rows that are right}, or nothing for tasks without a single label."""
    targets = batch["targets"]
    if not _one_label(targets):
        return {}
    label = task.predict(outputs).get("label")
    if label is None or label.shape != targets.shape:
        return {}
    real = batch["weight"] > 0
    return {"accuracy": jnp.sum((label == targets) & real) / jnp.maximum(jnp.sum(real), 1)}
