"""How alike the two texts (or images) of a pair are: the cosine of their embeddings."""

import jax.numpy as jnp

from tljax import losses, metrics
from tljax.base.errors import UserError
from tljax.base.types import Task
from tljax.models.heads import Embedding
from tljax.tasks.spec import TaskSpec, choose, choose_pool, output_of, scores

METRICS = {"spearman": "max", "pearson": "max"}


def similarity(
    spec: TaskSpec,
    *,
    pool: str = "mean",
    label_range: tuple[float, float] = (0.0, 5.0),
    main: str = "spearman",
) -> Task:
    """Similarity of pairs, without a trained head: evaluated as it is, or trained on the backbone alone.

    Inputs come as (B, 2, …) and run through the tower as (2B, …). The cosine is trained towards the label moved to
    [0, 1], with the squared error (Reimers and Gurevych 2019).

    Args:
      spec: see `TaskSpec`.
      pool: one of `spec.pools`, or "own".
      label_range: the labels of pairs with cosine 0 and cosine 1.
      main: the metric that chooses: "spearman" or "pearson".

    Returns:
      A `Task` whose prediction is `score` (B,), the cosine. Its `rmse` is in the unit of the labels.

    Raises:
      UserError: unknown options, an empty range, inputs that are not pairs.
    """
    low, high = map(float, label_range)
    if low >= high:
        raise UserError(f"config.task.label_range is {label_range!r}; the first must be below the second.")
    main = choose("main", main, tuple(METRICS))
    pool = choose_pool(spec, pool)

    def inputs(batch):
        faults = [f"{name} {x.shape}" for name, x in batch["inputs"].items() if x.ndim < 3 or x.shape[1] != 2]
        if faults:
            raise UserError(
                "The task similarity needs pairs, as inputs of shape (B, 2, …), and got "
                f"{', '.join(faults)}. Name both columns of the data and set the processor's pair='separate'."
            )
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch["inputs"].items()}

    def score(outputs):
        pairs = outputs["embedding"].reshape(-1, 2, outputs["embedding"].shape[-1])
        return losses.cosine(pairs[:, 0], pairs[:, 1])

    def measure(predictions, targets, records):
        return metrics.regression(targets, low + predictions["score"] * (high - low))

    return Task(
        name="similarity",
        head=Embedding(pool),
        uses=output_of(pool),
        inputs=inputs,
        targets=lambda batch: (jnp.asarray(batch["targets"], jnp.float32) - low) / (high - low),
        loss=lambda outputs, targets: losses.squared_error(score(outputs), targets),
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {"score": score(outputs)},
        metrics=measure,
        decode=lambda predictions, records: scores(predictions["score"]),
        main=(main, METRICS[main]),
    )
