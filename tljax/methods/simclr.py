"""Two random views of an example are told from all other examples. Chen, Kornblith, Norouzi and Hinton 2020."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.methods.common import example_features, feature_width, init_mlp, mean_loss, mlp, together, view_inputs
from tljax.models.heads import normalize


def simclr(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    temperature: float = 0.5,
    sizes: Sequence[int] = (512, 128),
) -> Method:
    """Contrastive learning without labels, arXiv 2002.05709.

    A projector, dense layers with ReLU between them, maps the vector of each view; the views of one example attract
    each other, and those of all other examples of the whole batch, over all devices, are negatives. Accumulated parts
    of a batch are small batches: the negatives of an example are those of its own part. The projector stands in the
    wing `method/`, has no norms, and is left behind in an export.

    Args:
      forward: see `Method`.
      task: with `feature`, the vector of an example; `pretraining` where there are no labels.
      temperature: what the cosines are divided by; in the paper 0.1 for large batches, 0.5 for CIFAR-10.
      sizes: widths of the projector's layers.

    Returns:
      A `Method` with the loss `contrastive` (NT-Xent), a mean over examples, and the metric `accuracy`: how often the
      other view of the example is the nearest. It reads the views `a` and `b` of `train`.

    Raises:
      UserError: options out of range; a model or task without one vector an example.
    """
    faults = [f"temperature is {temperature!r}; it must be above 0."] * (not temperature > 0)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        faults.append(f"sizes is {sizes!r}; it must be the widths of one layer or more, whole numbers from 1.")
    raise_faults("The section config.method cannot be used:", faults)

    def init(rng, shapes):
        return {"projector": init_mlp(rng, (feature_width(shapes, "simclr"), *sizes))}, {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        weight = jnp.asarray(batch["weight"], jnp.float32)
        views = [view_inputs(task, batch, view) for view in ("a", "b")]
        outputs, state = together(forward, params, state, views, rng)
        features = [example_features(task, x, batch, "simclr") for x in outputs]
        a, b = (mlp(params["method"]["projector"], x) for x in features)
        each, right = nt_xent(a, b, weight, temperature)
        accuracy = jnp.sum(right * weight) / jnp.maximum(jnp.sum(weight), 1e-9)
        return {"contrastive": mean_loss(each, weight)}, state, {"accuracy": accuracy}

    return Method(loss=loss, init=init, streams={"train": "unlabelled"}, views={"train": ("a", "b")})


def nt_xent(a: jax.Array, b: jax.Array, weight: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """−log softmax of each view's cosines to all other vectors, at its partner.

    Args:
      a, b: (B, D), of the two views.
      weight: (B,); examples of weight 0 are no negatives.
      temperature: what the cosines are divided by.

    Returns:
      (the loss, the share of the two views whose nearest vector is the partner), both (B,), the mean of the two views.
    """
    count = a.shape[0]
    vectors = normalize(jnp.concatenate([a, b]).astype(jnp.float32))
    scores = jnp.matmul(vectors, vectors.T, precision="highest") / temperature
    own = jnp.eye(2 * count, dtype=bool)
    partner = jnp.roll(own, count, axis=1)
    # A padding row sees its partner, so that its loss, which nobody counts, is finite.
    seen = (jnp.tile(weight > 0, 2)[None, :] & ~own) | partner
    scores = jnp.where(seen, scores, -jnp.inf)
    each = -jnp.sum(jnp.where(partner, jax.nn.log_softmax(scores), 0.0), axis=1)
    right = jnp.argmax(scores, axis=1) == jnp.argmax(partner, axis=1)
    return each.reshape(2, count).mean(axis=0), right.reshape(2, count).mean(axis=0)
