"""No labels: the method alone says what is learned, and nothing is measured but its losses."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.models.heads import pool as pooled
from tljax.tasks.spec import TaskSpec, choose_pool, output_of


def pretraining(spec: TaskSpec, *, pool: str = "mean") -> Task:
    """The backbone alone, for methods that learn without labels; labels that the data have are not read.

    Its losses stand in the records of the run. There is no metric to choose a checkpoint by, so the config has no
    validation data, and the last checkpoint is the result.

    Args:
      spec: see `TaskSpec`.
      pool: one of `spec.pools`, or "own": how `predict` makes one vector of an example.

    Returns:
      A `Task` without head; its prediction is `embedding` (B, D).

    Raises:
      UserError: an unknown pooling; when evaluated, or trained with a method that needs labels.
    """
    pool = choose_pool(spec, pool)

    def no_labels(*_: Any) -> Any:
        raise UserError(
            "The task pretraining has no labels and no loss of its own. Name a method that learns without them in "
            "config.method, such as wav2vec2."
        )

    def metrics(predictions: Mapping[str, Any], targets: Any, records: Any) -> dict[str, Any]:
        raise UserError(
            "The task pretraining measures nothing: its loss belongs to the method. Leave only `train` in config.data, "
            "and judge the result by a run that starts from it."
        )

    def predict(outputs: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"embedding": pooled(outputs, pool).astype(jnp.float32)}

    def decode(predictions: Mapping[str, Any], records: Any) -> list[dict[str, Any]]:
        return [{"embedding": np.round(vector, 6).tolist()} for vector in np.asarray(predictions["embedding"], float)]

    return Task(
        name="pretraining",
        head=None,
        uses=output_of(pool),
        inputs=lambda batch: batch["inputs"],
        targets=no_labels,
        loss=no_labels,
        weights=lambda batch: batch["weight"],
        predict=predict,
        metrics=metrics,
        decode=decode,
        main=("loss", "min"),
    )
