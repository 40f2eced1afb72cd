"""What methods share: several streams through one forward pass, the supervised part, small networks, schedules."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.paths import flatten, unflatten
from tljax.base.types import Loss, Task

TWO_DOMAINS = {"streams": {"train": "labelled", "target": "unlabelled"}, "domains": ("train", "target")}
"""The fields of a `Method` that learns from a labelled source and an unlabelled target."""


def together(
    forward: Callable[..., tuple[Any, Any]],
    params: Any,
    state: Any,
    inputs: Sequence[Mapping[str, Any]],
    rng: jax.Array,
    *,
    train: bool = True,
    hidden_states: bool = False,
) -> tuple[list[dict[str, Any]], Any]:
    """One forward pass over several batches, one under another: (outputs of each, state).

    Statistics of batch norm are those of all batches together. Where batches of tokens have different lengths, the
    shorter ones are padded at the end with zeros, which their masks mark.

    Args:
      forward: see `Method`.
      inputs: of each batch, with the same names.
    """
    names = set(inputs[0])
    if any(set(each) != names for each in inputs):
        raise UserError(
            "The streams of the method have different inputs: "
            + "; ".join(", ".join(sorted(each)) for each in inputs)
            + ". Give them the same processor."
        )
    counts = [len(next(iter(each.values()))) for each in inputs]
    joined = {name: _stack([jnp.asarray(each[name]) for each in inputs]) for name in inputs[0]}
    outputs, state = forward(params, state, joined, rng, train=train, hidden_states=hidden_states)
    parts, start, total = [], 0, sum(counts)
    for count in counts:
        cut = lambda x, start=start, count=count: x[start : start + count] if _by_example(x, total) else x  # noqa: E731
        parts.append(jax.tree.map(cut, outputs))
        start += count
    return parts, state


def _by_example(x: Any, total: int) -> bool:
    return hasattr(x, "ndim") and x.ndim > 0 and x.shape[0] == total


def _stack(parts: Sequence[jax.Array]) -> jax.Array:
    shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in parts), strict=True)]
    padded = [
        jnp.pad(x, [(0, 0), *((0, to - have) for to, have in zip(shape, x.shape[1:], strict=True))]) for x in parts
    ]
    return jnp.concatenate(padded)


def source_and_target(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    params: Any,
    state: Any,
    batches: Mapping[str, Mapping[str, Any]],
    rng: jax.Array,
    *,
    hidden_states: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """(outputs of the stream `train`, outputs of the stream `target`, state), by `together` in training mode."""
    pair = [batches["train"], batches["target"]]
    inputs = [task.inputs(batch) for batch in pair]
    if any(len(next(iter(x.values()))) != len(batch["weight"]) for x, batch in zip(inputs, pair, strict=True)):
        raise UserError(f"Domains are compared by one vector an example, and the task {task.name} has several inputs.")
    (source, target), state = together(forward, params, state, inputs, rng, hidden_states=hidden_states)
    return source, target, state


def negative_faults(**options: float) -> list[str]:
    """One message for each option that is below 0 (or NaN), where 0 means that something has no part."""
    return [f"{name} is {x!r}; it must be 0 (none) or above." for name, x in options.items() if not x >= 0]


def supervised_loss(
    task: Task, outputs: Mapping[str, Any], batch: Mapping[str, Any], *, name: str, factor: Any = 1.0
) -> Loss:
    """The task's loss of a labelled batch, weighted, as the method `supervised` has it.

    Args:
      name: of the method, for the message where there are no labels.
      factor: that each example's loss is multiplied by, (B,); the weight that the sum is divided by stays.
    """
    if "targets" not in batch:
        raise UserError(f"The method {name} needs labels, and the records of this stream have none.")
    targets, weights = jax.tree.map(jnp.asarray, task.targets(batch)), jnp.asarray(task.weights(batch))
    return Loss(jnp.sum(task.loss(outputs, targets) * weights * factor), jnp.sum(weights))


def mean_loss(values: jax.Array, weight: jax.Array, scale: Any = 1.0) -> Loss:
    """`scale` · the mean of `values` (B,) over the examples, weighted by `weight` (B,)."""
    weight = jnp.asarray(weight, jnp.float32)
    return Loss(scale * jnp.sum(values * weight), jnp.sum(weight))


def mean_over_places(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of values (B, …) over the places of each example, tokens or pixels: (B,).

    Args:
      mask: (B, …), 0 at the places that count for nothing; None, or one of another shape (that of the tokens, for the
        values of patches), where all count.
    """
    counts = jnp.ones(values.shape) if mask is None or mask.shape != values.shape else mask.astype(jnp.float32)
    places = tuple(range(1, values.ndim))
    return jnp.sum(values * counts, axis=places) / jnp.maximum(jnp.sum(counts, axis=places), 1e-9)


def replace_leaves(params: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with other values for the flat `leaves`, in the dtypes that it has: a teacher's tree."""
    flat = flatten(params)
    return unflatten({**flat, **{path: leaf.astype(flat[path].dtype) for path, leaf in leaves.items()}})


def moving_average(average: Mapping[str, Any], live: Mapping[str, Any], keep: Any) -> dict[str, Any]:
    """`keep` · `average` + (1 − `keep`) · `live`, leaf by leaf; leaves that are not live now stay as they are.

    Args:
      average: flat; its leaves and no others are averaged.
      live: flat, of this step.
      keep: from 0 to 1.
    """
    return {path: keep * old + (1 - keep) * live[path] if path in live else old for path, old in average.items()}


@jax.custom_vjp
def reverse_gradient(x: jax.Array, scale: Any) -> jax.Array:
    """`x`; on the way back its gradient times −`scale` (Ganin and Lempitsky 2015)."""
    return x


reverse_gradient.defvjp(
    lambda x, scale: (x, scale), lambda scale, gradient: (jax.tree.map(lambda g: -scale * g, gradient), None)
)


def sigmoid_ramp(step: Any, steps: int, sharpness: float = 10.0) -> jax.Array:
    """2 / (1 + exp(−`sharpness` · p)) − 1, p = step / `steps` and at most 1: from 0 to nearly 1 (Ganin et al. 2016)."""
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
    return 2.0 / (1.0 + jnp.exp(-sharpness * share)) - 1.0


def init_mlp(rng: jax.Array, sizes: Sequence[int]) -> dict[str, Any]:
    """Parameters `layer0/kernel`, `layer0/bias`, … of dense layers of these sizes, started as by He et al. 2015."""
    keys = jax.random.split(rng, len(sizes) - 1)
    start = jax.nn.initializers.he_normal()
    return {
        f"layer{i}": {"kernel": start(key, (fan_in, fan_out)), "bias": jnp.zeros((fan_out,))}
        for i, (key, fan_in, fan_out) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }


def mlp(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them, (B, in) → (B, out), in float32."""
    x = x.astype(jnp.float32)
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        x = x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def feature_width(shapes: Mapping[str, Any], name: str) -> int:
    """D of the vectors that the task makes of an example; `UserError` for a model without them."""
    if shapes.get("feature") is None:
        raise UserError(f"The method {name} needs one vector an example, and this model gives none.")
    return shapes["feature"].shape[-1]


def view_inputs(task: Task, batch: Mapping[str, Any], view: str) -> Mapping[str, Any]:
    """The model inputs of a random view of the batch's examples."""
    return task.inputs({**batch, "inputs": batch["views"][view]})


def example_features(task: Task, outputs: Mapping[str, Any], batch: Mapping[str, Any], name: str) -> jax.Array:
    """`task.feature` of the outputs, (B, D), float32; `UserError` where a batch's example has several vectors."""
    features, examples = task.feature(outputs), len(batch["weight"])
    if features.shape[0] != examples:
        raise UserError(
            f"The method {name} needs one vector an example, and the task {task.name} makes {features.shape[0]} of "
            f"{examples} examples. Train on examples that are no pairs."
        )
    return features.astype(jnp.float32)


def logits_width(shapes: Mapping[str, Any], name: str) -> int:
    """Y of a model with one row of logits an example; `UserError` for other models."""
    logits = shapes.get("logits")
    if logits is None or logits.ndim != 2:
        found = "has none" if logits is None else f"has them of shape (B, {', '.join(map(str, logits.shape[1:]))})"
        raise UserError(f"The method {name} needs one row of logits (B, Y) an example, and this model {found}.")
    return logits.shape[-1]


def class_count(task: Task, shapes: Mapping[str, Any], name: str) -> int:
    """Y of a task that gives each example one of Y classes; `UserError` for other tasks."""
    logits = shapes.get("logits")
    if task.name != "classification" or task.main[0] != "accuracy" or logits is None:
        raise UserError(
            f"The method {name} needs a task that gives each example one class (classification with labels='single'), "
            f"and this one is {task.name}."
        )
    return logits.shape[-1]
