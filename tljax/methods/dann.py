"""Domain-adversarial training. Ganin et al. 2016, Journal of Machine Learning Research 17, arXiv 1505.07818."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import (
    TWO_DOMAINS,
    feature_width,
    init_mlp,
    mean_loss,
    mlp,
    negative_faults,
    reverse_gradient,
    sigmoid_ramp,
    source_and_target,
    supervised_loss,
)

PLACES = ("feature", "map")


def dann(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    weight: float = 1.0,
    ramp: int = 1000,
    widths: Sequence[int] = (1024, 1024),
    place: str = "feature",
) -> Method:
    """The task is learnt on the source domain, from features by which a discriminator cannot tell the domains.

    The wing `method/` holds `discriminator`, a network on the vector that the head reads. It learns at the full rate;
    its gradient is reversed on the way to the backbone, and scaled by λ = `weight` · (2 / (1 + exp(−10 · p)) − 1),
    p = step / `ramp` and at most 1. The paper's p is the share of the whole training, so its `ramp` is
    `config.train.steps`. The loss is the mean of both domains', where the paper has their sum: its λ is twice ours.

    Args:
      forward: see `Method`.
      task: any with one input an example.
      weight: λ at the end.
      ramp: steps until then; 0 is λ = `weight` from the first step.
      widths: of the discriminator's hidden layers.
      place: what the discriminator sees: "feature", the vector that the head reads, or "map", all numbers of the last
        feature map, below any dense layers of the tower: the paper's place in its networks for digits.

    Returns:
      A `Method` with the streams `train` (labelled) and `target` (unlabelled); the losses `task`, `domain_source` and
      `domain_target`, which are log 2 / 2 each where the domains cannot be told; and the metrics `domain_accuracy`, the
      mean of both domains', and `reversal`, which is λ.

    Raises:
      UserError: options out of range; a model without a vector an example.
    """
    faults = [] if place in PLACES else [f"place is {place!r}. {suggest(place, PLACES)}"]
    raise_faults("The section config.method cannot be used:", [*adversary_faults(weight, ramp, widths), *faults])

    def seen(outputs):
        return task.feature(outputs) if place == "feature" else outputs["hidden"].reshape(len(outputs["hidden"]), -1)

    def init(rng, shapes):
        width = feature_width(shapes, "dann")
        if place == "map":
            if shapes["hidden"].ndim != 4:
                raise UserError("config.method.place is 'map', and this model gives no feature map. Use 'feature'.")
            width = math.prod(shapes["hidden"].shape[1:])
        return {"discriminator": init_mlp(rng, (width, *widths, 1))}, {}

    def loss(params, state, batches, rng, step):
        source, target, state = source_and_target(forward, task, params, state, batches, rng)
        scale = reversal(step, weight, ramp)
        losses, metrics = adversarial(
            params["method"]["discriminator"],
            (seen(source), seen(target)),
            (batches["train"]["weight"], batches["target"]["weight"]),
            scale,
        )
        task_loss = supervised_loss(task, source, batches["train"], name="dann")
        return {"task": task_loss, **losses}, state, {**metrics, "reversal": scale}

    return Method(loss=loss, init=init, **TWO_DOMAINS)


def adversary_faults(weight: Any, ramp: Any, widths: Any) -> list[str]:
    """What is wrong with the options of a discriminator, one message each."""
    faults = negative_faults(weight=weight)
    if not isinstance(ramp, int) or ramp < 0:
        faults.append(f"ramp is {ramp!r}; it must be a whole number of steps, or 0 (none).")
    if not all(isinstance(width, int) and width > 0 for width in widths):
        faults.append(f"widths is {tuple(widths)!r}; it must hold whole numbers from 1.")
    return faults


def reversal(step: Any, weight: float, ramp: int) -> jax.Array:
    """λ at a step; see `dann`."""
    return weight * (sigmoid_ramp(step, ramp) if ramp else jnp.float32(1.0))


def adversarial(
    discriminator: Mapping[str, Any], seen: Sequence[jax.Array], weights: Sequence[jax.Array], scale: Any
) -> tuple[dict[str, Loss], dict[str, jax.Array]]:
    """({"domain_source", "domain_target"}, {"domain_accuracy"}) of a discriminator behind a reversed gradient.

    Args:
      discriminator: parameters of `mlp`, with one output: above 0 for the source.
      seen: what it sees of the source (N, D) and of the target (M, D).
      weights: (N,) and (M,).
      scale: of the reversed gradient.
    """
    losses, right = {}, []
    for name, sign, x, weight in zip(("domain_source", "domain_target"), (1, -1), seen, weights, strict=True):
        # In float32 from here on: so is the scale, and a gradient has the dtype of its value.
        scores = sign * mlp(discriminator, reverse_gradient(x.astype(jnp.float32), scale))[:, 0]
        losses[name] = mean_loss(jax.nn.softplus(-scores), weight, 0.5)
        right.append(jnp.sum((scores > 0) * weight) / jnp.maximum(jnp.sum(weight), 1e-9))
    return losses, {"domain_accuracy": (right[0] + right[1]) / 2}
