"""Mean teacher: agree with the moving average of the own weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Method, Task
from tljax.methods.common import (
    class_count,
    mean_loss,
    moving_average,
    negative_faults,
    replace_leaves,
    supervised_loss,
    together,
    view_inputs,
)
from tljax.methods.fixmatch import share_of

DISTANCES = ("squared", "kl")


def mean_teacher(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    decay: float = 0.999,
    weight: float = 1.0,
    ramp: int = 0,
    distance: str = "squared",
) -> Method:
    """Labelled examples as in `supervised`, and unlabelled ones whose probabilities should be the teacher's.

    Tarvainen and Valpola 2017, arXiv 1703.01780. The teacher is the exponential moving average of the live leaves, kept
    in float32 in the method's state; frozen leaves and running statistics are the student's. It sees a view of its own,
    in inference mode (the paper's also drops out), and has no gradient. At step n, counted from 1, the average keeps
    min(`decay`, 1 − 1 / (n + 1)) of itself, so that it forgets its start. What is evaluated, saved and exported is the
    student.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: classification with one class an example.
      decay: the most that the teacher keeps of itself in a step.
      weight: of the distance between student and teacher. The paper has 100 for the squared distance on CIFAR-10.
      ramp: steps in which the weight rises from nearly 0 as exp(−5 · (1 − step / ramp)²); 0 starts with the whole.
      distance: "squared": the mean over the classes of the squared difference of probabilities; "kl": the
        Kullback–Leibler divergence of the student from the teacher.

    Returns:
      A `Method` that reads the streams `train` and `unlabelled`, the latter with the views `student` and `teacher`,
      with the losses `task` and `consistency`, and the metrics `agreement`, the share of unlabelled examples to which
      both give the same class, and `consistency_weight`.

    Raises:
      UserError: options out of range, all in one message; a task that gives an example not just one class.
    """
    raise_faults("The section config.method cannot be used:", _faults(decay, weight, ramp, distance))

    def init(rng, shapes):
        class_count(task, shapes, "mean_teacher")
        return {}, {}

    def start(state, live, counts):
        return {"teacher": live}

    def loss(params, state, batches, rng, step):
        labelled, batch = batches["train"], batches["unlabelled"]
        own, others = (view_inputs(task, batch, name) for name in ("student", "teacher"))
        slow = replace_leaves(params, state["method"]["teacher"])
        teacher, _ = forward(jax.lax.stop_gradient(slow), state, others, rng, train=False)
        (known, student), state = together(forward, params, state, [task.inputs(labelled), own], rng)
        each = apart(student["logits"], teacher["logits"], distance)
        scale = weight * bell(step, ramp)
        found = {
            "task": supervised_loss(task, known, labelled, name="mean_teacher"),
            "consistency": mean_loss(each, batch["weight"], scale),
        }
        same = jnp.argmax(student["logits"], axis=-1) == jnp.argmax(teacher["logits"], axis=-1)
        return found, state, {"agreement": share_of(same, batch["weight"]), "consistency_weight": scale}

    def after_step(state, live, step):
        return {"teacher": moving_average(state["teacher"], live, jnp.minimum(decay, 1 - 1 / (step + 1)))}

    return Method(
        loss=loss,
        init=init,
        start=start,
        after_step=after_step,
        streams={"train": "labelled", "unlabelled": "unlabelled"},
        views={"unlabelled": ("student", "teacher")},
    )


def _faults(decay: float, weight: float, ramp: int, distance: str) -> list[str]:
    faults = [] if 0 <= decay < 1 else [f"decay is {decay!r}; it must be from 0 up to, but not including, 1."]
    faults += negative_faults(weight=weight)
    if not isinstance(ramp, int) or ramp < 0:
        faults.append(f"ramp is {ramp!r}; it must be a whole number of steps, 0 or above.")
    if distance not in DISTANCES:
        faults.append(f"distance is {distance!r}. {suggest(distance, DISTANCES)}")
    return faults


def apart(student: jax.Array, teacher: jax.Array, distance: str) -> jax.Array:
    """The distance of each pair of rows of logits (B, Y), as `mean_teacher` names it: (B,), float32."""
    own = jax.nn.log_softmax(student.astype(jnp.float32))
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32))
    if distance == "squared":
        return jnp.mean(jnp.square(jnp.exp(own) - jnp.exp(wanted)), axis=-1)
    return jnp.sum(jnp.exp(wanted) * (wanted - own), axis=-1)


def bell(step: Any, steps: int) -> jax.Array:
    """exp(−5 · (1 − `step` / `steps`)²), and 1 from `steps` on (Laine and Aila 2017, arXiv 1610.02242)."""
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0) if steps else jnp.float32(1)
    return jnp.exp(-5.0 * jnp.square(1.0 - share))
