"""One number for each example."""

import jax.numpy as jnp

from tljax import losses, metrics
from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.models.heads import STARTS, Classifier
from tljax.tasks.spec import TaskSpec, choose, choose_dropout, choose_pool, output_of, scores

METRICS = {"rmse": "min", "pearson": "max", "spearman": "max"}


def regression(
    spec: TaskSpec,
    *,
    pool: str = "own",
    normalize: bool = False,
    dropout: float | None = None,
    init: str = "zeros",
    mean: float = 0.0,
    scale: float = 1.0,
    main: str = "rmse",
) -> Task:
    """Regression by one dense layer on a pooled vector and the squared error.

    Args:
      spec: see `TaskSpec`.
      pool: one of `spec.pools`, or "own".
      normalize: scale the pooled vector to length 1 first.
      dropout: rate before the dense layer; None is the checkpoint's.
      init: "zeros", "normal" (truncated, deviation 0.02) or "he" (deviation √(2 / D)).
      mean: what the layer's 0 means, in the unit of the labels.
      scale: what the layer's 1 means beyond that; the error is squared in this unit.
      main: the metric that chooses: "rmse", "pearson" or "spearman".

    Returns:
      A `Task` whose prediction is `score` (B,), in the unit of the labels.

    Raises:
      UserError: unknown options, a scale that is not above 0.
    """
    if scale <= 0:
        raise UserError(f"config.task.scale is {scale!r}; it must be above 0.")
    main = choose("main", main, tuple(METRICS))
    pool = choose_pool(spec, pool)
    module = Classifier(1, pool, normalize, choose_dropout(spec, dropout), choose("init", init, tuple(STARTS)))

    def predict(outputs):
        return {"score": outputs["logits"][:, 0].astype(jnp.float32) * scale + mean}

    return Task(
        name="regression",
        head=module,
        uses=output_of(pool),
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: (jnp.asarray(batch["targets"], jnp.float32) - mean) / scale,
        loss=lambda outputs, targets: losses.squared_error(outputs["logits"][:, 0], targets),
        weights=lambda batch: batch["weight"],
        predict=predict,
        metrics=lambda predictions, targets, records: metrics.regression(targets, predictions["score"]),
        decode=lambda predictions, records: scores(predictions["score"]),
        main=(main, METRICS[main]),
    )
