"""Adapting a trained classifier to new data without labels and without the old data.

Liang, Hu and Feng 2020, Do we really need to access the source data? (SHOT), ICML, arXiv 2002.08546.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import raise_faults
from tljax.base.types import Loss, Method, Survey, Task
from tljax.methods.common import class_count, example_features, feature_width, mean_loss, negative_faults

UNKNOWN = -1
"""The pseudo-label of an example that has none."""


def shot(
    forward: Callable[..., tuple[Any, Any]], task: Task, *, diversity: float = 1.0, pseudo_label: float = 0.3
) -> Method:
    """Sure predictions for each example of `train`, different ones over all, and pseudo-labels from centroids.

    The model is a classifier that was trained before (config.task.head="own") and `train` are unlabelled data of the
    target. The classifier is the paper's hypothesis, which stays: the strategy must freeze the head, and this method
    cannot tell whether it does:

        config.strategy = dict(freeze=dict(rules=["head/.*"]))

    The loss is the mean entropy of the predictions, − diversity · the entropy of their mean over the batch (together:
    information maximisation), + pseudo_label · the cross-entropy of the pseudo-labels. These are renewed before each
    epoch, from all examples at once: each takes the class of the centroid whose direction its feature is nearest to.
    Centroids are first the means of the features, weighted by the probabilities of the class, and then the means of the
    features that took the class. The entropy of the mean is a statistic of the whole batch: of accumulated parts it is
    taken part by part.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state).
      task: that gives each example one class.
      diversity: weight of the diversity.
      pseudo_label: weight of the pseudo-labels; the paper has 0.3 (0.1 for digits).

    Returns:
      A `Method` with the losses `entropy`, `diversity` (minus the entropy of the mean prediction) and `pseudo_label`;
      and the metrics `entropy`, and `agreement`, the share of the examples whose prediction is their pseudo-label.

    Raises:
      UserError: options out of range; another task; a head that nothing has trained.
    """
    raise_faults(
        "The section config.method cannot be used:",
        negative_faults(diversity=diversity, pseudo_label=pseudo_label),
    )

    def init(rng, shapes):
        class_count(task, shapes, "shot")
        feature_width(shapes, "shot")
        return {}, {}

    def start(state, live, counts):
        return {"labels": jnp.full(counts["train"], UNKNOWN, jnp.int32)}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        weight = jnp.asarray(batch["weight"], jnp.float32)
        outputs, state = forward(params, state, task.inputs(batch), rng, train=True)
        labels = state["method"]["labels"][batch["index"]]
        known = weight * (labels != UNKNOWN)
        logs = jax.nn.log_softmax(outputs["logits"].astype(jnp.float32))
        entropies = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
        surprise = -jnp.take_along_axis(logs, jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
        total = jnp.sum(weight)
        found = {
            "entropy": mean_loss(entropies, weight),
            "diversity": Loss(-diversity * mean_entropy(logs, weight) * total, total),
            "pseudo_label": mean_loss(surprise, known, pseudo_label),
        }
        same = jnp.sum((jnp.argmax(logs, axis=-1) == labels) * known) / jnp.maximum(jnp.sum(known), 1e-9)
        mean = jnp.sum(entropies * weight) / jnp.maximum(total, 1e-9)
        return found, state, {"entropy": mean, "agreement": same}

    def read(params, state, batch):
        outputs, _ = forward(params, state, task.inputs(batch), None, train=False)
        probabilities = jax.nn.softmax(outputs["logits"].astype(jnp.float32))
        return {"feature": example_features(task, outputs, batch, "shot"), "probabilities": probabilities}

    def digest(state, found):
        return {"labels": pseudo_labels(**found["train"])}

    survey = Survey(("train",), read, digest) if pseudo_label else None
    return Method(loss=loss, init=init, start=start, streams={"train": "unlabelled"}, survey=survey, trained_head=True)


def mean_entropy(logs: jax.Array, weight: jax.Array) -> jax.Array:
    """The entropy of the mean, weighted by `weight` (B,), of the probabilities exp(logs) (B, Y); in nats."""
    mean = jnp.einsum("by,b->y", jnp.exp(logs), weight) / jnp.maximum(jnp.sum(weight), 1e-9)
    # A probability of a class that nobody gets is 0 in float32, where the logarithm's gradient is infinite.
    return -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))


def pseudo_labels(feature: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The class of the nearest centroid of each example, (N,) int32, by cosine (equations 4 to 6 of the paper).

    Args:
      feature: (N, D).
      probabilities: (N, Y).
    """
    feature = _unit(np.asarray(feature, np.float64))
    labels = _nearest(feature, np.asarray(probabilities, np.float64))
    return _nearest(feature, np.eye(probabilities.shape[1])[labels]).astype(np.int32)


def _nearest(feature: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The class whose centroid, the mean of `feature` weighted by `shares` (N, Y), has the nearest direction."""
    cosines = feature @ _unit(shares.T @ feature).T
    # A class that no example has a share in has no centroid.
    return np.argmax(np.where(shares.sum(axis=0) > 0, cosines, -np.inf), axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
