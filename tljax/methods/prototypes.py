"""Prototypical networks: a query belongs to the class whose mean feature is nearest. Snell, Swersky and Zemel 2017.

What methods of few-shot learning share is here too. Axes: E episodes of a batch, W ways, S shots and Q queries of each
way, D width of the features.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax import losses
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Loss, Method, Task
from tljax.data.episodes import Episodes
from tljax.methods.common import example_features, feature_width, mean_loss

DISTANCES = ("euclidean", "cosine")
TASKS = ("few_shot", "classification", "pretraining")
ABSENT = -1e30
"""The logit of a class without a shot: finite, so that a loss of weight 0 is 0 and no NaN."""


def prototypes(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    ways: int,
    shots: int,
    queries: int,
    distance: str = "euclidean",
    temperature: float = 1.0,
) -> Method:
    """Each query is told from the other classes of its episode by its distance to the means of their shots.

    p(y | x) = softmax_y(−‖f(x) − c_y‖² / τ), c_y = mean of f over the shots of y (Snell, Swersky and Zemel 2017,
    arXiv 1703.05175). Data: the stream `train` with `episodes=dict(ways=…, shots=…, queries=…)` and the same numbers as
    here. Labels are not read: an episode's order tells its classes. Shots and queries share a forward pass.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: gives the model inputs and the feature, as `few_shot` does; its loss and its head are not used.
      ways: W; may be more than in the evaluation, which the paper found to help.
      shots: S.
      queries: Q.
      distance: "euclidean", squared as in the paper; or "cosine": the logits are cosines / τ.
      temperature: τ; the paper has 1. Cosines want about 0.1.

    Returns:
      A `Method` with the loss `episode`, the mean cross entropy of the queries, and their metric `accuracy`. Examples
      of weight 0 have no part, neither as shots nor as queries.

    Raises:
      UserError: options out of range; a model without features; when traced, batches that are no such episodes.
    """
    shape = Episodes(ways, shots, queries)
    faults = [f"distance is {distance!r}. {suggest(distance, DISTANCES)}"] * (distance not in DISTANCES)
    faults += [f"temperature is {temperature!r}; it must be above 0."] * (not temperature > 0)
    raise_faults("The section config.method cannot be used:", [*shape.faults(), *faults])

    def init(rng, shapes):
        check_task(task, "prototypes")
        feature_width(shapes, "prototypes")
        return {}, {}

    def loss(params, state, batches, rng, step):
        batch = checked(batches["train"], shape, "prototypes")
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        parts = cut(example_features(task, outputs, batch, "prototypes"), batch["weight"], shape)
        found, metrics = query_loss(similarities(parts, distance) / temperature, parts)
        return {"episode": found}, state, metrics

    return Method(loss=loss, init=init)


class Parts(NamedTuple):
    """The features and weights of a batch of episodes, float32.

    Attributes:
      shots: (E, W, S, D).
      shot_weights: (E, W, S).
      queries: (E, W · Q, D), class by class.
      query_weights: (E, W · Q).
    """

    shots: jax.Array
    shot_weights: jax.Array
    queries: jax.Array
    query_weights: jax.Array


def check_task(task: Task, name: str) -> None:
    """Raises `UserError` for a task whose batches have other targets than a class an example."""
    if task.name not in TASKS:
        raise UserError(
            f"The method {name} learns from the classes of episodes, and the task {task.name} has other targets. "
            f"Accepted: {', '.join(TASKS)}."
        )


def checked(batch: Mapping[str, Any], shape: Episodes, name: str) -> Mapping[str, Any]:
    """`batch` (of arrays or of shapes), where it holds whole episodes; else a `UserError`."""
    wanted = f"config.data.train.episodes=dict(ways={shape.ways}, shots={shape.shots}, queries={shape.queries})"
    if "episode" not in batch:
        raise UserError(f"The method {name} learns from episodes, and these batches are none. Set {wanted}.")
    count = batch["weight"].shape[0]
    if count % shape.size:
        raise UserError(
            f"The method {name} was given {count} examples at once, and an episode of {shape.ways} ways with "
            f"{shape.shots} shots and {shape.queries} queries has {shape.size}. Set {wanted}, and "
            "config.train.batch_size so that each of its accumulated parts holds whole episodes."
        )
    return batch


def cut(features: jax.Array, weight: Any, shape: Episodes) -> Parts:
    """`Parts` of the features (B, D) and weights (B,) of episodes that are class by class, the shots first."""
    each = shape.shots + shape.queries
    features = features.reshape(-1, shape.ways, each, features.shape[-1])
    weight = jnp.asarray(weight, jnp.float32).reshape(-1, shape.ways, each)
    queries, query_weights = features[:, :, shape.shots :], weight[:, :, shape.shots :]
    return Parts(
        shots=features[:, :, : shape.shots],
        shot_weights=weight[:, :, : shape.shots],
        queries=queries.reshape(len(queries), -1, queries.shape[-1]),
        query_weights=query_weights.reshape(len(queries), -1),
    )


def similarities(parts: Parts, distance: str) -> jax.Array:
    """The cosine, or the negative squared distance, of each query to each class's mean shot, (E, W · Q, W)."""
    total = jnp.sum(parts.shot_weights, axis=2)[..., None]
    sums = jnp.einsum("ewsd,ews->ewd", parts.shots, parts.shot_weights, precision="highest")
    means = sums / jnp.where(total > 0, total, 1.0)
    if distance == "cosine":
        return losses.cosine(parts.queries[:, :, None], means[:, None])
    products = jnp.einsum("eqd,ewd->eqw", parts.queries, means, precision="highest")
    squares = jnp.sum(parts.queries**2, axis=-1)[:, :, None] + jnp.sum(means**2, axis=-1)[:, None]
    return 2 * products - squares


def query_loss(logits: jax.Array, parts: Parts) -> tuple[Loss, dict[str, jax.Array]]:
    """(the weighted cross entropy of the queries, {"accuracy"}) of logits (E, W · Q, W).

    A class whose shots all have weight 0 is no answer, and its queries do not count.
    """
    ways = logits.shape[-1]
    there = jnp.sum(parts.shot_weights, axis=2) > 0
    logits = jnp.where(there[:, None], logits, ABSENT)
    answers = jnp.repeat(jnp.arange(ways), logits.shape[1] // ways)
    weight = parts.query_weights * there[:, answers]
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), answers[None, :, None], axis=-1)[..., 0]
    real = weight > 0
    right = jnp.sum((jnp.argmax(logits, axis=-1) == answers) & real) / jnp.maximum(jnp.sum(real), 1)
    return mean_loss(each, weight), {"accuracy": right}
