"""Learning a task while the features stay near those of the start. Li, Xiong et al. 2019 (DELTA), arXiv 1901.09229.

Axes: B batch, D width of a hidden state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Method, Survey, Task
from tljax.methods.common import mean_loss, mean_over_places, negative_faults, supervised_loss


def delta(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    teacher: Any = "start",
    weight: float = 0.01,
    states: Sequence[int] | None = None,
    attention: bool = False,
    temperature: float = 1.0,
) -> Method:
    """The task is learnt, and hidden states are pulled to those that the model had of the same example at the start.

    Where `l2_sp` holds the weights, this holds what they compute: weight / 2 · the sum over the states of the squared
    distance of the channels, Σ a (h − h₀)², in the mean over tokens or pixels. With a = 1 it is what the paper calls
    DELTA without attention. With `attention` a is D · softmax(ΔL / temperature), and ΔL how much the loss rises where
    the channel is zero, for a classifier of the new data on the start's features. It is the teacher's: train a linear
    probe, export it, and name the export as config.method.teacher; its backbone is the start's. The paper zeroes one
    channel after another, a pass over the data for each; here ΔL is its first-order estimate, −h · ∂L/∂h, which is one
    pass for all, before the first step. It keeps N · D numbers of each state on the host while it is taken.

    Args:
      forward: see `Method`.
      task: any with labels.
      teacher: "start", the checkpoint of config.model; or a section as config.model.
      weight: of the pull.
      states: numbers of the hidden states that are pulled, counted as `hidden_states` are, 0 for the embeddings; None
        takes all but those. The paper pulls the outputs of the last stages.
      attention: whether channels that matter for the new labels are held harder.
      temperature: of the softmax; the paper has 1. Below 1 fewer channels have more of the weight.

    Returns:
      A `Method` with the losses `task` and `features`, and the metric `distance`, what `features` is before its weight.

    Raises:
      UserError: options out of range; hidden states that there are not, or that differ in shape from the teacher's;
        `attention` with a teacher that has no classifier of these classes.
    """
    _check(teacher, weight, states, attention, temperature)

    def init(rng, shapes):
        chosen = chosen_states(shapes, teacher.shapes, states)
        if not attention:
            return {}, {}
        _check_classifier(shapes.get("logits"), teacher.shapes.get("logits"))
        return {}, {"attention": {str(i): jnp.ones(shapes["hidden_states"][i].shape[-1]) for i in chosen}}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        inputs = task.inputs(batch)
        outputs, state = forward(params, state, inputs, rng, train=True, hidden_states=True)
        guide = jax.lax.stop_gradient(teacher(params, inputs, hidden_states=True))
        factors = state["method"]["attention"] if attention else {}
        each = sum(
            feature_distance(outputs, guide, i, factors.get(str(i))) for i in chosen_states(outputs, guide, states)
        )
        if len(each) != len(batch["weight"]):
            raise UserError("The method delta takes examples one by one, and this task reads several together.")
        pull = mean_loss(each, batch["weight"], 0.5 * weight)
        distance = mean_loss(each, batch["weight"])
        found = {"task": supervised_loss(task, outputs, batch, name="delta"), "features": pull}
        return found, state, {"distance": distance.sum / jnp.maximum(distance.weight, 1e-9)}

    survey = _attention(task, teacher, states, temperature) if attention else None
    return Method(loss=loss, init=init, survey=survey, changes_inputs=True)


def _attention(task: Task, teacher: Any, states: Sequence[int] | None, temperature: float) -> Survey:
    """The pass over the data that gives each channel its factor, from the teacher alone."""

    def read(params, state, batch):
        inputs, targets = task.inputs(batch), task.targets(batch)
        weights = jnp.asarray(task.weights(batch), jnp.float32)

        def total(gates):
            return jnp.sum(task.loss(teacher(params, inputs, gates=gates), targets) * weights)

        hidden, rows = teacher.shapes["hidden_states"], len(weights)
        chosen = chosen_states(teacher.shapes, teacher.shapes, states)
        slopes = jax.grad(total)({teacher.stages[i]: jnp.ones((rows, hidden[i].shape[-1])) for i in chosen})
        return {str(i): -slopes[teacher.stages[i]] for i in chosen}

    def digest(state, found):
        rises = {i: np.mean(rise, axis=0) for i, rise in found["train"].items() if i != "targets"}
        return {"attention": {i: channel_weights(rise, temperature) for i, rise in rises.items()}}

    return Survey(("train",), read, digest, every="start")


def _check(teacher: Any, weight: float, states: Any, attention: Any, temperature: float) -> None:
    faults = negative_faults(weight=weight)
    if not callable(teacher):
        faults.append(f"teacher is {teacher!r}; it must be 'start', or a section as config.model: dict(source=…).")
    if states is not None and (
        isinstance(states, (str, int)) or not states or not all(isinstance(i, int) for i in states)
    ):
        faults.append(f"states is {states!r}; it must be some numbers of hidden states, such as (-2, -1), or None.")
    if not isinstance(attention, bool):
        faults.append(f"attention is {attention!r}; it must be True or False.")
    if not temperature > 0:
        faults.append(f"temperature is {temperature!r}; it must be above 0.")
    raise_faults("The section config.method cannot be used:", faults)


def _check_classifier(ours: Any, theirs: Any) -> None:
    """That the teacher's logits, of this shape or None, are of the classes of the model's."""
    if ours is None or theirs is None or ours.shape[1:] != theirs.shape[1:]:
        found = "has none" if theirs is None else f"has logits of shape (B, {', '.join(map(str, theirs.shape[1:]))})"
        raise UserError(
            "The attention of the method delta asks a classifier on the start's features which channels matter, and "
            f"config.method.teacher {found}. Train a linear probe on these data, export it, and name the export."
        )


def chosen_states(ours: Mapping[str, Any], theirs: Mapping[str, Any], states: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers, from 0, of the hidden states to compare; `UserError` where there is none or shapes differ.

    Args:
      ours: outputs of the model, or their shapes.
      theirs: of the teacher.
      states: as in `delta`.
    """
    hidden, others = ours.get("hidden_states", ()), theirs.get("hidden_states", ())
    wanted = range(1, len(hidden)) if states is None else states
    faults = [] if hidden else ["config.model reports no hidden states, so nothing can be held."]
    for i in wanted:
        if not -len(hidden) <= i < len(hidden):
            faults.append(f"config.model has {len(hidden)} hidden states, and states names number {i}.")
        elif (
            len(hidden) != len(others) or hidden[i].ndim != others[i].ndim or hidden[i].shape[-1] != others[i].shape[-1]
        ):
            faults.append(f"hidden state {i} is not of one shape in config.model and in config.method.teacher.")
    raise_faults("The method delta cannot hold these features:", list(dict.fromkeys(faults))[:6])
    return tuple(sorted({i % len(hidden) for i in wanted}))


def feature_distance(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], index: int, factors: jax.Array | None = None
) -> jax.Array:
    """Σ factors · (h − h₀)² over the channels of a hidden state, in the mean over its places: (B,), in float32.

    Args:
      ours: outputs with hidden states (B, …, D), and a `mask` (B, …) where some places count for nothing.
      theirs: of the start.
      index: number of the hidden state.
      factors: (D,), or None for ones.
    """
    h, start = ours["hidden_states"][index], theirs["hidden_states"][index]
    if h.shape != start.shape:
        raise UserError(
            f"The method delta: hidden state {index} has the shape {h.shape}, and that of config.method.teacher "
            f"{start.shape}. Both must make the same of an example."
        )
    squares = jnp.square(h.astype(jnp.float32) - start.astype(jnp.float32))
    each = jnp.sum(squares if factors is None else squares * factors, axis=-1)
    return mean_over_places(each, ours.get("mask"))


def channel_weights(rises: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """D · softmax(rises / temperature), (D,) float32, with a mean of one.

    Args:
      rises: how much the loss rises where each channel is zero, (D,).
    """
    scores = np.asarray(rises, np.float64) / temperature
    found = np.exp(scores - scores.max())
    return (found * (len(found) / found.sum())).astype(np.float32)
