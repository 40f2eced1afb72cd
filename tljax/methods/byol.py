"""A network foretells what its own moving average makes of another view. Grill et al. 2020."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.losses import cosine
from tljax.methods.common import (
    example_features,
    feature_width,
    init_mlp,
    mean_loss,
    moving_average,
    replace_leaves,
    view_inputs,
)
from tljax.models.heads import normalize

AVERAGED = ("backbone/", "method/projector/")
"""What the target network has of its own; it has no predictor."""


def byol(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    hidden: int = 4096,
    width: int = 256,
    decay: float = 0.996,
    steps: int | None = None,
) -> Method:
    """Bootstrap your own latent, arXiv 2006.07733: learning from two views of each example, without negatives.

    The online network is backbone, projector and predictor; the target network is the moving average of backbone and
    projector, has no gradient, and stands in the state of the method. Projector and predictor are dense, batch norm,
    ReLU, dense; their norms take the statistics of the whole batch, one view at a time, over all devices and without
    padding. Accumulated parts of a batch have statistics of their own. Leaves that a strategy freezes are the same in
    both networks. Nothing but the backbone is left in an export.

    Args:
      forward: see `Method`.
      task: with `feature`, the vector of an example; `pretraining` where there are no labels.
      hidden: width of the hidden layer of projector and predictor.
      width: of what they give.
      decay: share of the target's leaves that is kept at the first step.
      steps: the decay grows to 1 on a cosine over that many steps, 1 − (1 − decay) · (cos(π · step / steps) + 1) / 2;
        the paper takes all steps of the run. None keeps it constant.

    Returns:
      A `Method` with the loss `prediction`, the mean over examples of the sum over views of 2 − 2 · cos; and the
      metrics `decay` and `spread`, √width · the mean standard deviation of a coordinate of the projections scaled
      to length 1: near 1 where they fill the sphere, 0 where all examples have become one point. It reads the views
      `a` and `b` of `train`.

    Raises:
      UserError: options out of range; a model or task without one vector an example.
    """
    faults = [
        f"{name} is {value!r}; it must be a whole number from 1."
        for name, value in (("hidden", hidden), ("width", width), ("steps", steps))
        if not (name == "steps" and value is None) and (not isinstance(value, int) or value < 1)
    ]
    if not 0 <= decay <= 1:
        faults.append(f"decay is {decay!r}; it must be from 0 to 1.")
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        keys = jax.random.split(rng)
        inner = feature_width(shapes, "byol")
        wing = {"projector": init_network(keys[0], inner, hidden, width)}
        return {**wing, "predictor": init_network(keys[1], width, hidden, width)}, {}

    def start(state, live, counts):
        return {"target": {path: leaf for path, leaf in live.items() if path.startswith(AVERAGED)}}

    def loss(params, state, batches, rng, step):
        batch, weight = batches["train"], jnp.asarray(batches["train"]["weight"], jnp.float32)
        target_params = replace_leaves(params, state["method"]["target"])

        def project(params, state, view, rng):
            outputs, state = forward(params, state, view_inputs(task, batch, view), rng, train=True)
            features = example_features(task, outputs, batch, "byol")
            return network(params["method"]["projector"], features, weight), state

        a_key, b_key, other_a, other_b = jax.random.split(rng, 4)
        # The running statistics that the target's passes would move are nobody's: they are dropped.
        wanted_a, wanted_b = (
            jax.lax.stop_gradient(project(target_params, state, view, key)[0])
            for view, key in (("a", other_a), ("b", other_b))
        )
        a, state = project(params, state, "a", a_key)
        b, state = project(params, state, "b", b_key)
        foretold_a, foretold_b = (network(params["method"]["predictor"], x, weight) for x in (a, b))
        each = 4.0 - 2.0 * (cosine(foretold_a, wanted_b) + cosine(foretold_b, wanted_a))
        metrics = {"decay": decay_at(step, decay, steps), "spread": spread(a, weight)}
        return {"prediction": mean_loss(each, weight)}, state, metrics

    def after_step(state, live, step):
        return {"target": moving_average(state["target"], live, decay_at(step - 1, decay, steps))}

    return Method(
        loss=loss,
        init=init,
        start=start,
        after_step=after_step,
        streams={"train": "unlabelled"},
        views={"train": ("a", "b")},
    )


def decay_at(step: Any, decay: float, steps: int | None) -> jax.Array:
    """The decay of the moving average after `step` updates; see `byol`."""
    if steps is None:
        return jnp.asarray(decay, jnp.float32)
    share = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
    return 1.0 - (1.0 - decay) * (jnp.cos(math.pi * share) + 1.0) / 2.0


def init_network(rng: jax.Array, inner: int, hidden: int, width: int) -> dict[str, Any]:
    """Parameters of `network`: `layer0` (inner → hidden), `norm`, `layer1` (hidden → width)."""
    return {**init_mlp(rng, (inner, hidden, width)), "norm": {"scale": jnp.ones(hidden), "bias": jnp.zeros(hidden)}}


def network(params: Mapping[str, Any], x: jax.Array, weight: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Dense, batch norm by the statistics of the rows with a weight, ReLU, dense; (B, in) → (B, out), float32."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x = x.astype(jnp.float32) @ params["layer0"]["kernel"] + params["layer0"]["bias"]
    mean, variance = moments(x, weight)
    x = (x - mean) * jax.lax.rsqrt(variance + epsilon) * params["norm"]["scale"] + params["norm"]["bias"]
    return jax.nn.relu(x) @ params["layer1"]["kernel"] + params["layer1"]["bias"]


def moments(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, biased variance) of each column of the rows of (B, D) whose weight is above 0."""
    real = (weight > 0).astype(jnp.float32)[:, None]
    count = jnp.maximum(jnp.sum(real), 1.0)
    mean = jnp.sum(x * real, axis=0) / count
    return mean, jnp.sum(jnp.square(x - mean) * real, axis=0) / count


def spread(x: jax.Array, weight: jax.Array) -> jax.Array:
    """√D · the mean standard deviation of a coordinate of the rows of (B, D), scaled to length 1."""
    _, variance = moments(normalize(x), weight)
    return math.sqrt(x.shape[1]) * jnp.mean(jnp.sqrt(variance))
