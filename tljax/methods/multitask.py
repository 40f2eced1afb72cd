"""Several tasks trained together: how much each is read, how much it weighs, and whose gradients give way."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import supervised_loss, together

WEIGHTINGS = ("equal", "examples", "uncertainty")
GRADIENTS = ("sum", "pcgrad")
SQUARED = ("regression", "similarity")
"""Tasks whose loss is a squared error, the negative logarithm of a Gaussian up to its factor ½."""


def multitask(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    weighting: str | Mapping[str, float] = "equal",
    temperature: float = 1.0,
    limit: int | None = None,
    gradients: str = "sum",
    variance_rate: float = 1.0,
) -> Method:
    """Every step draws a batch from the stream `train_NAME` of each task NAME, and each task has its own loss.

    Mixing (Raffel et al. 2020, section 3.5.2): of the `config.train.batch_size` examples of a step, a task with n
    records has a share proportional to min(n, limit)^(1 / temperature). Batches have a fixed size, so the shares are
    rounded, to 1 at least; `batch_size` of an entry overrides its share.

    The joint loss is Σ w_i · L_i, with L_i the mean of the task's loss over its batch:
      "equal": w_i = 1. The mixing changes how exactly each L_i is estimated, and not what is minimised.
      "examples": every example weighs the same, w_i is the task's share of the batch: what a model that reads one
        mixed batch minimises, so that the temperature decides how much a task counts.
      "uncertainty" (Kendall, Gal and Cipolla 2018): w_i = exp(−s_i), and s_i / 2 is added; ½ exp(−s_i) where the loss
        is a squared error. s_i, the logarithm of the task's variance, is learnt.
      {NAME: number}: these.

    Gradients: "pcgrad" (Yu et al. 2020) takes from each task's gradient its projection on every other task's gradient
    with which it has a negative product, one after another in random order, and sums what is left. Products and
    projections are those of the joint vector of the backbone's leaves; `head` and `method` get the plain sum. It costs
    a backward pass a task. Where the backbone has no running statistics each task then has a forward pass of its own,
    and a backward pass no longer than that; otherwise, and with "sum", all tasks go through one pass, in which batch
    norm sees them all.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: `several`.
      weighting: see above.
      temperature: 1 mixes in proportion to the records, infinity evenly.
      limit: the most records that a task counts as; None is no limit.
      gradients: see above.
      variance_rate: s_i is this times its leaf `method/log_variance/NAME`. Adam's steps do not depend on the size of
        a gradient, so this multiplies the learning rate of the variances, which must go further than weights.

    Returns:
      A `Method` with a loss for each task, by its name, weighted; the metrics `weight_NAME` with "uncertainty", and
      with "pcgrad" `conflicts`, the share of pairs of tasks whose gradients have a negative product, and `cosine`,
      the mean over the pairs.

    Raises:
      UserError: a task that is not `several`; options out of range; weights for other tasks than there are.
    """
    _check(task, weighting, temperature, limit, gradients, variance_rate)
    names = {f"train_{name}": name for name in task.parts}

    def init(rng, shapes):
        wing = {"log_variance": {name: jnp.zeros(()) for name in task.parts}} if weighting == "uncertainty" else {}
        return wing, {}

    def loss(params, state, batches, rng, step):
        inputs = [task.parts[name].inputs(batches[stream]) for stream, name in names.items()]
        if gradients == "pcgrad" and not jax.tree.leaves(state.get("batch_stats", {})):
            keys, outputs = jax.random.split(rng, len(names)), []
            for key, each in zip(keys, inputs, strict=True):
                made, state = forward(params, state, each, key, train=True)
                outputs.append(made)
        else:
            outputs, state = together(forward, params, state, inputs, rng)
        losses = {
            name: supervised_loss(task.parts[name], made, batches[stream], name="multitask")
            for (stream, name), made in zip(names.items(), outputs, strict=True)
        }
        if weighting == "uncertainty":
            losses, metrics = uncertain(task, losses, params["method"]["log_variance"], variance_rate)
            return losses, state, metrics
        return weighted(losses, weighting), state, {}

    return Method(
        loss=loss,
        init=init,
        combine=pcgrad if gradients == "pcgrad" else None,
        streams=dict.fromkeys(names, "labelled"),
        mixing=lambda counts: mixing(counts, temperature, limit),
    )


def mixing(counts: Mapping[str, int], temperature: float = 1.0, limit: int | None = None) -> dict[str, float]:
    """The share of each of `counts` {name: records}: min(n, limit)^(1 / temperature) over the sum of these."""
    sizes = {name: min(n, limit or n) ** (1 / temperature) for name, n in counts.items()}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def weighted(losses: Mapping[str, Loss], weighting: str | Mapping[str, float]) -> dict[str, Loss]:
    """The losses of a `weighting` without parameters; see `multitask`."""
    if weighting == "examples":
        total = sum(each.weight for each in losses.values())
        return {name: Loss(each.sum, total) for name, each in losses.items()}
    factors = dict.fromkeys(losses, 1.0) if weighting == "equal" else weighting
    return {name: Loss(factors[name] * each.sum, each.weight) for name, each in losses.items()}


def uncertain(
    task: Task, losses: Mapping[str, Loss], log_variance: Mapping[str, jax.Array], rate: float
) -> tuple[dict[str, Loss], dict[str, jax.Array]]:
    """(losses weighted by the tasks' own variances, each with its s / 2; the weights, as metrics)."""
    made, metrics = {}, {}
    for name, each in losses.items():
        s = rate * log_variance[name].astype(jnp.float32)
        weight = jnp.exp(-s) * (0.5 if task.parts[name].name in SQUARED else 1.0)
        made[name] = Loss(weight * each.sum + 0.5 * s * each.weight, each.weight)
        metrics[f"weight_{name}"] = weight
    return made, metrics


def pcgrad(grads: Mapping[str, Mapping[str, jax.Array]], key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the gradient of Yu et al. 2020 from one flat gradient a task, how much the tasks disagree); see `multitask`."""
    tasks = list(grads.values())
    products = jnp.zeros((len(tasks), len(tasks)))
    for path in tasks[0]:
        if path.startswith("backbone/"):
            rows = jnp.stack([each[path].astype(jnp.float32).ravel() for each in tasks])
            products += jnp.matmul(rows, rows.T, precision="highest")
    factors = surgery(products, key)
    combined = {
        path: sum((factors[i] if path.startswith("backbone/") else 1.0) * each[path] for i, each in enumerate(tasks))
        for path in tasks[0]
    }
    lengths = jnp.sqrt(jnp.diagonal(products))
    cosines = products / jnp.maximum(lengths[:, None] * lengths, 1e-30)
    pairs = jnp.triu(jnp.ones_like(products), 1)
    count = jnp.maximum(pairs.sum(), 1)
    metrics = {"conflicts": jnp.sum(pairs * (products < 0)) / count, "cosine": jnp.sum(pairs * cosines) / count}
    return combined, metrics


def surgery(products: jax.Array, key: jax.Array) -> jax.Array:
    """How often each task's gradient stands in the sum of the projected ones, (tasks,).

    All that is projected is a sum of the gradients that there were, so the numbers of that sum are enough, and they
    follow from the products of the gradients (tasks, tasks) alone.
    """
    count = len(products)
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(key, count))

    def left(i: jax.Array, order: jax.Array) -> jax.Array:
        def give_way(numbers, j):
            product = numbers @ products[:, j]
            cut = jnp.where((product < 0) & (j != i), product / jnp.maximum(products[j, j], 1e-30), 0.0)
            return numbers.at[j].add(-cut), None

        return jax.lax.scan(give_way, jax.nn.one_hot(i, count), order)[0]

    return jax.vmap(left)(jnp.arange(count), orders).sum(axis=0)


def _check(task: Task, weighting: Any, temperature: Any, limit: Any, gradients: Any, variance_rate: Any) -> None:
    if not task.parts:
        raise UserError(
            f"The method multitask trains several tasks, and config.task is {task.name}. Use "
            "config.task.name='several' with a section for each task in config.task.tasks."
        )
    faults = []
    if isinstance(weighting, Mapping):
        faults += [
            f"weighting has no number for {name}, or one below 0: {weighting.get(name)!r}."
            for name in task.parts
            if not _number(weighting.get(name)) or weighting[name] < 0
        ]
        faults += [
            f"weighting: {name} is no task. {suggest(name, task.parts)}" for name in weighting.keys() - task.parts
        ]
    elif weighting not in WEIGHTINGS:
        faults.append(f"weighting is {weighting!r}. {suggest(weighting, WEIGHTINGS)} Or a number for each task.")
    if gradients not in GRADIENTS:
        faults.append(f"gradients is {gradients!r}. {suggest(gradients, GRADIENTS)}")
    if not _number(temperature) or not temperature >= 1:
        faults.append(f"temperature is {temperature!r}; it must be at least 1.")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        faults.append(f"limit is {limit!r}; it must be a whole number of records, at least 1, or None.")
    if not _number(variance_rate) or not 0 < variance_rate < math.inf:
        faults.append(f"variance_rate is {variance_rate!r}; it must be above 0.")
    raise_faults("The section config.method cannot be used:", faults)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
