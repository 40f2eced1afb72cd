"""Few-shot learning through a ridge regression that is solved in closed form. Bertinetto et al. 2019."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from tljax.base.errors import raise_faults
from tljax.base.types import Method, Task
from tljax.data.episodes import Episodes
from tljax.methods.common import example_features, feature_width
from tljax.methods.prototypes import Parts, check_task, checked, cut, query_loss


def ridge(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    ways: int,
    shots: int,
    queries: int,
    regularization: float = 1.0,
    scale: float = 10.0,
) -> Method:
    """Each episode fits a linear classifier to its shots, and the features learn that it is right on the queries.

    R2-D2 (Bertinetto, Henriques, Torr and Vedaldi 2019, arXiv 1805.08136): from the shots' features X (W · S, D) and
    their one-hot classes Y follow the weights Xᵀ (X Xᵀ + λ I)⁻¹ Y, by the Woodbury identity: the system has as many
    rows as there are shots. The logits of queries X′ are α X′ Xᵀ (X Xᵀ + λ I)⁻¹ Y + β, and the gradient goes through
    the solution. Data and `task`: as for `prototypes`.

    The wing `method/` holds three learnt scalars: `log_regularization` (λ stays positive), `scale` (α) and `bias` (β).
    Under a softmax β changes nothing; it is the paper's. The task `few_shot` evaluates with its own, fixed λ.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: gives the model inputs and the feature; its loss and its head are not used.
      ways: W.
      shots: S.
      queries: Q.
      regularization: λ at the start, in the square of the unit of the features.
      scale: α at the start. The regression's outputs are about 0 and 1, too near one another for a softmax.

    Returns:
      A `Method` with the loss `episode`, the mean cross entropy of the queries, and the metrics `accuracy` on them,
      `regularization` and `scale`. Examples of weight 0 have no part, neither as shots nor as queries; other weights
      of shots weigh their squared errors.

    Raises:
      UserError: options out of range; a model without features; when traced, batches that are no such episodes.
    """
    shape = Episodes(ways, shots, queries)
    faults = [
        f"{name} is {value!r}; it must be above 0."
        for name, value in (("regularization", regularization), ("scale", scale))
        if not value > 0
    ]
    raise_faults("The section config.method cannot be used:", [*shape.faults(), *faults])

    def init(rng, shapes):
        check_task(task, "ridge")
        feature_width(shapes, "ridge")
        start = {"log_regularization": math.log(regularization), "scale": scale, "bias": 0.0}
        return {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}, {}

    def loss(params, state, batches, rng, step):
        batch = checked(batches["train"], shape, "ridge")
        wing = {name: leaf.astype(jnp.float32) for name, leaf in params["method"].items()}
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        parts = cut(example_features(task, outputs, batch, "ridge"), batch["weight"], shape)
        regularization = jnp.exp(wing["log_regularization"])
        logits = wing["scale"] * regression(parts, regularization) + wing["bias"]
        found, metrics = query_loss(logits, parts)
        return {"episode": found}, state, {**metrics, "regularization": regularization, "scale": wing["scale"]}

    return Method(loss=loss, init=init)


def regression(parts: Parts, regularization: Any) -> jax.Array:
    """What the ridge regression of each episode's shots on their one-hot classes says of its queries, (E, W · Q, W)."""
    episodes, ways, shots, width = parts.shots.shape
    # A weighted regression is a plain one of rows times the roots of their weights; rows of zeros have no part.
    roots = jnp.sqrt(parts.shot_weights).reshape(episodes, -1, 1)
    x = parts.shots.reshape(episodes, -1, width) * roots
    y = jnp.repeat(jnp.eye(ways), shots, axis=0) * roots
    gram = jnp.einsum("end,emd->enm", x, x, precision="highest") + regularization * jnp.eye(ways * shots)
    dual = cho_solve(cho_factor(gram, lower=True), y)
    return jnp.einsum("eqd,end,enw->eqw", parts.queries, x, dual, precision="highest")
