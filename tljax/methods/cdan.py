"""Conditional adversarial domain adaptation. Long, Cao, Wang and Jordan 2018, NeurIPS, arXiv 1705.10667.

Axes: B batch, D width of the features, Y classes, R width of the random map.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.methods.common import TWO_DOMAINS, class_count, feature_width, init_mlp, source_and_target, supervised_loss
from tljax.methods.dann import adversarial, adversary_faults, reversal


def cdan(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    weight: float = 1.0,
    ramp: int = 1000,
    widths: Sequence[int] = (1024, 1024),
    entropy: bool = False,
    limit: int = 4096,
    random_width: int = 1024,
) -> Method:
    """As `dann`, with a discriminator that sees features and predictions together, as their outer product.

    Above `limit` products it sees (x · P) ⊙ (p · Q) / √R instead, whose fixed normal matrices P (D, R) and Q (Y, R) are
    the method's state and are not trained: its inner products are those of the outer product in expectation. As in the
    authors' code, no gradient goes through the predictions.

    Args:
      forward: see `Method`.
      task: classification, one class an example.
      weight, ramp, widths: see `dann`.
      entropy: weigh each example by 1 + exp(−H) of its prediction's entropy H: the sure ones count most (CDAN+E).
      limit: the largest D · Y whose products are all made.
      random_width: R.

    Returns:
      A `Method` with the streams, losses and metrics of `dann`; with `entropy` the accuracy is weighted too.

    Raises:
      UserError: options out of range; another kind of task.
    """
    faults = adversary_faults(weight, ramp, widths)
    faults += [
        f"{name} is {value!r}; it must be a whole number from {least}."
        for name, value, least in (("limit", limit, 0), ("random_width", random_width, 1))
        if not isinstance(value, int) or value < least
    ]
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        classes, width = class_count(task, shapes, "cdan"), feature_width(shapes, "cdan")
        inner_key, feature_key, class_key = jax.random.split(rng, 3)
        state = {}
        if width * classes > limit:
            normal = jax.random.normal
            maps = normal(feature_key, (width, random_width)), normal(class_key, (classes, random_width))
            state = {"maps": dict(zip(("feature", "classes"), maps, strict=True))}
        size = random_width if state else width * classes
        return {"discriminator": init_mlp(inner_key, (size, *widths, 1))}, state

    def loss(params, state, batches, rng, step):
        source, target, state = source_and_target(forward, task, params, state, batches, rng)
        pair = (source, "train"), (target, "target")
        shares = [jax.lax.stop_gradient(jax.nn.softmax(x["logits"].astype(jnp.float32))) for x, _ in pair]
        weights = [jnp.asarray(batches[name]["weight"]) for _, name in pair]
        if entropy:
            weights = [w * certainty(p) for w, p in zip(weights, shares, strict=True)]
        maps = state["method"].get("maps")
        seen = [joint(task.feature(x), p, maps) for (x, _), p in zip(pair, shares, strict=True)]
        scale = reversal(step, weight, ramp)
        losses, metrics = adversarial(params["method"]["discriminator"], seen, weights, scale)
        task_loss = supervised_loss(task, source, batches["train"], name="cdan")
        return {"task": task_loss, **losses}, state, {**metrics, "reversal": scale}

    return Method(loss=loss, init=init, **TWO_DOMAINS)


def joint(feature: jax.Array, shares: jax.Array, maps: Mapping[str, jax.Array] | None = None) -> jax.Array:
    """Features (B, D) and probabilities (B, Y) as one row an example: (B, D · Y), or (B, R) by random `maps`."""
    feature = feature.astype(jnp.float32)
    if maps is None:
        return (feature[:, :, None] * shares[:, None]).reshape(len(feature), -1)
    one, two = feature @ maps["feature"], shares @ maps["classes"]
    return one * two / math.sqrt(one.shape[1])


def certainty(shares: jax.Array) -> jax.Array:
    """1 + exp(−H) of probabilities (B, Y): from 1 + 1 / Y, where all classes are as likely, to 2."""
    return 1.0 + jnp.exp(jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1))
