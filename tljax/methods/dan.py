"""Deep adaptation networks. Long, Cao, Wang and Jordan 2015, ICML, arXiv 1502.02791."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax import domains
from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import (
    TWO_DOMAINS,
    feature_width,
    logits_width,
    negative_faults,
    source_and_target,
    supervised_loss,
)

ESTIMATORS = ("unbiased", "biased", "linear")


def dan(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    weight: float = 1.0,
    stages: int = 1,
    estimator: str = "unbiased",
) -> Method:
    """The task is learnt on the source domain, with the domains' kernel means made alike at several depths.

    At each depth, and for the logits, the squared maximum mean discrepancy with five Gaussian kernels is added up (see
    `tljax.domains.mmd`). Their bandwidths follow the mean distance of the batch, and the kernels count alike: the
    paper's optimal mixture is left out. It is a statistic of the batch: of a batch in accumulated parts each part has
    its own.

    Args:
      forward: see `Method`.
      task: any with one row of logits an example.
      weight: of the discrepancy.
      stages: how many depths: the vector that the head reads, and before it the last recorded stages of the backbone
        (`hidden_states`), pooled likewise. 0 is the logits alone.
      estimator: "unbiased" (all pairs, may be below 0), "biased" (V-statistic), or "linear", the unbiased estimate of
        the paper, which takes half as many quadruples as examples and is much noisier.

    Returns:
      A `Method` with the streams `train` (labelled) and `target` (unlabelled) and the losses `task` and `mmd`.

    Raises:
      UserError: options out of range; a model without a vector or a row of logits an example; when traced, a backbone
        with fewer stages.
    """
    faults = negative_faults(weight=weight)
    if not isinstance(stages, int) or stages < 0:
        faults.append(f"stages is {stages!r}; it must be a whole number from 0.")
    if estimator not in ESTIMATORS:
        faults.append(f"estimator is {estimator!r}. Accepted: {', '.join(ESTIMATORS)}.")
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        feature_width(shapes, "dan"), logits_width(shapes, "dan")
        return {}, {}

    def loss(params, state, batches, rng, step):
        source, target, state = source_and_target(forward, task, params, state, batches, rng, hidden_states=stages > 1)
        weights = [jnp.asarray(batches[name]["weight"]) for name in ("train", "target")]
        pairs = zip(*(depths(task, outputs, stages) for outputs in (source, target)), strict=True)
        total = sum(discrepancy(*pair, *weights, estimator) for pair in pairs)
        count = jnp.sum(weights[0]) + jnp.sum(weights[1])
        task_loss = supervised_loss(task, source, batches["train"], name="dan")
        return {"task": task_loss, "mmd": Loss(weight * total * count, count)}, state, {}

    return Method(loss=loss, init=init, **TWO_DOMAINS)


def depths(task: Task, outputs: Mapping[str, Any], stages: int) -> list[jax.Array]:
    """The vectors (B, D) of the last `stages` depths, and the logits (B, Y)."""
    found = []
    if stages > 1:
        states = outputs.get("hidden_states", ())
        if len(states) < stages:
            raise UserError(
                f"config.method.stages is {stages}, and the backbone gives out {len(states)} hidden states. Set it to "
                f"{max(len(states), 1)} at most."
            )
        found = [task.feature({**outputs, "hidden": x, "pooled": _mean(x, outputs)}) for x in states[-stages:-1]]
    return [*found, *([task.feature(outputs)] if stages else []), outputs["logits"]]


def _mean(hidden: jax.Array, outputs: Mapping[str, Any]) -> jax.Array:
    """(B, D): what stands for `pooled` of an earlier stage, whose pooler there is none."""
    mask = outputs.get("mask")
    if hidden.ndim == 3 and mask is not None:
        share = mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1e-9)
        return jnp.einsum("btd,bt->bd", hidden, share.astype(hidden.dtype))
    return jnp.mean(hidden, axis=tuple(range(1, hidden.ndim - 1)))


def discrepancy(
    source: jax.Array, target: jax.Array, source_weight: jax.Array, target_weight: jax.Array, estimator: str
) -> jax.Array:
    """The squared maximum mean discrepancy by an estimator of `ESTIMATORS`."""
    if estimator == "linear":
        return domains.linear_mmd(source, target, source_weight, target_weight)
    return domains.mmd(source, target, source_weight, target_weight, unbiased=estimator == "unbiased")
