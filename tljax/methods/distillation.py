"""Learning from a larger model that was trained before. Hinton, Vinyals and Dean 2015, arXiv 1503.02531."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import class_count, mean_loss, mean_over_places, supervised_loss


def distillation(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    teacher: Any,
    temperature: float = 2.0,
    soft: float = 0.5,
    hint: Sequence[int] | None = None,
    hint_weight: float = 1.0,
) -> Method:
    """The student takes over the teacher's probabilities and, with `hint`, its features (FitNets, Romero et al. 2015).

    With logits s of the student and t of the teacher the loss is (1 − soft) · the task's + soft · T² · the divergence
    KL(softmax(t / T) ‖ softmax(s / T)); the factor keeps the size of the gradient as T grows (Hinton et al. 2015). A
    hint is hint_weight · the mean squared difference between a hidden state of the teacher and a linear map of one of
    the student's, trained in the wing `method/`, over the width and the places (tokens that the mask marks, pixels).
    FitNets trains the hint first and the rest afterwards; here both train together.

    The teacher is frozen and runs in inference mode, on the inputs that the student's processor makes: it must read
    the same ones (the same vocabulary, the same pixels), and have its classes in the order of the data's.

    Args:
      forward: (params, state, inputs, rng, *, train, hidden_states) → (outputs, state).
      task: that gives each example one class.
      teacher: in a config, a section as config.model; here (params, inputs, *, hidden_states) → outputs, with the
        attribute `shapes`, those of its outputs for a batch of one.
      temperature: T.
      soft: the share of the teacher's probabilities, from 0 to 1. With 1 no labels are read, and none are needed.
      hint: (number of the student's hidden state, number of the teacher's), counted as `hidden_states` are, 0 for the
        embeddings and −1 for the last; None for no hint. Both must have the same places; widths may differ.
      hint_weight: of the hint.

    Returns:
      A `Method` with the losses `task` (unless soft is 1), `soft` (unless it is 0) and `hint` (where there is one), and
      the metric `agreement`, the share of the examples to which both give the same class.

    Raises:
      UserError: options out of range; another task; a teacher without logits or with another number of classes; hidden
        states that there are not, or whose places differ.
    """
    _check(teacher, temperature, soft, hint, hint_weight)

    def init(rng, shapes):
        _check_classifier(teacher.shapes.get("logits"), class_count(task, shapes, "distillation"))
        return ({"hint": init_hint(rng, shapes, teacher.shapes, hint)} if hint is not None else {}), {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        inputs, weight = task.inputs(batch), jnp.asarray(batch["weight"])
        more = {"hidden_states": True} if hint is not None else {}
        outputs, state = forward(params, state, inputs, rng, train=True, **more)
        guide = jax.lax.stop_gradient(teacher(params, inputs, **more))
        found: dict[str, Loss] = {}
        if soft < 1:
            labelled = supervised_loss(task, outputs, batch, name="distillation")
            found["task"] = Loss((1 - soft) * labelled.sum, labelled.weight)
        if soft > 0:
            each = softened_divergence(outputs["logits"], guide["logits"], temperature)
            found["soft"] = mean_loss(each, weight, soft)
        if hint is not None:
            each = hint_distance(params["method"]["hint"], outputs, guide, hint)
            found["hint"] = mean_loss(each, weight, hint_weight)
        same = jnp.argmax(outputs["logits"], -1) == jnp.argmax(guide["logits"], -1)
        return found, state, {"agreement": jnp.sum(same * (weight > 0)) / jnp.maximum(jnp.sum(weight > 0), 1)}

    streams = {"train": "unlabelled" if soft == 1 else "labelled"}
    return Method(loss=loss, init=init, streams=streams, changes_inputs=True)


def _check(teacher: Any, temperature: float, soft: float, hint: Any, hint_weight: float) -> None:
    faults = []
    if not callable(teacher):
        faults.append(f"teacher is {teacher!r}; it must be a section as config.model, such as dict(source=…).")
    if not temperature > 0:
        faults.append(f"temperature is {temperature!r}; it must be above 0.")
    if not 0 <= soft <= 1:
        faults.append(f"soft is {soft!r}; it is a share, from 0 to 1.")
    if not hint_weight > 0:
        faults.append(f"hint_weight is {hint_weight!r}; it must be above 0. Without a hint, set hint=None.")
    if hint is not None and (
        isinstance(hint, str) or len(hint) != 2 or not all(isinstance(place, int) for place in hint)
    ):
        faults.append(
            f"hint is {hint!r}; it must be two whole numbers: a hidden state of the student, one of the teacher."
        )
    if soft == 0 and hint is None:
        faults.append("soft is 0 and there is no hint: nothing is learnt from the teacher. Use the method supervised.")
    raise_faults("The section config.method cannot be used:", faults)


def _check_classifier(theirs: Any, classes: int) -> None:
    """That the teacher's logits, of this shape or None, are of so many classes."""
    if theirs is None or theirs.ndim != 2:
        raise UserError(
            "config.method.teacher gives no logits of classes: the method distillation needs a checkpoint with a "
            "classifier, such as the export of a run that trained one."
        )
    if theirs.shape[-1] != classes:
        raise UserError(
            f"config.method.teacher tells {theirs.shape[-1]} classes apart, and the data have {classes}. The "
            "teacher must have been trained on the classes of the data, in their order."
        )


def init_hint(
    rng: jax.Array, shapes: Mapping[str, Any], teacher_shapes: Mapping[str, Any], hint: Sequence[int]
) -> dict[str, jax.Array]:
    """{"kernel" (D, D of the teacher), "bias"}: the linear map from the student's hidden state to the teacher's."""
    states, faults = [], []
    for whose, given, place in (("model", shapes, hint[0]), ("method.teacher", teacher_shapes, hint[1])):
        hidden = given.get("hidden_states", ())
        if not -len(hidden) <= place < len(hidden):
            faults.append(f"config.{whose} has {len(hidden)} hidden states, and hint names number {place}.")
        else:
            states.append(hidden[place])
    if not faults and states[0].ndim != states[1].ndim:
        faults.append(f"the hidden states {tuple(hint)} have the shapes {states[0].shape} and {states[1].shape}.")
    raise_faults("The hint of config.method cannot be used:", faults)
    widths = (states[0].shape[-1], states[1].shape[-1])
    return {"kernel": jax.nn.initializers.lecun_normal()(rng, widths), "bias": jnp.zeros(widths[1:])}


def softened_divergence(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of logits (B, Y), (B,), in float32."""
    ours, theirs = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (student, teacher))
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def hint_distance(
    leaves: Mapping[str, jax.Array], outputs: Mapping[str, Any], guide: Mapping[str, Any], hint: Sequence[int]
) -> jax.Array:
    """The mean squared difference of the hidden states of each example, (B,), in float32."""
    ours, theirs = outputs["hidden_states"][hint[0]], guide["hidden_states"][hint[1]]
    if ours.shape[:-1] != theirs.shape[:-1]:
        raise UserError(
            f"The hint of config.method: its hidden state {hint[0]} has the shape {ours.shape}, the teacher's "
            f"{hint[1]} has {theirs.shape}. All but the width must be equal: name others."
        )
    kernel, bias = (leaves[name].astype(jnp.float32) for name in ("kernel", "bias"))
    each = jnp.mean(jnp.square(ours.astype(jnp.float32) @ kernel + bias - theirs.astype(jnp.float32)), axis=-1)
    return mean_over_places(each, outputs.get("mask"))
