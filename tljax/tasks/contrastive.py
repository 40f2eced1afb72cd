"""Contrastive learning: what belongs together is near, and what else is in the batch is far.

Images and their texts (Radford et al. 2021), and pairs of texts (Henderson et al. 2017; Reimers and Gurevych 2019).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax import losses, metrics
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Task
from tljax.data.image_text import Pairs
from tljax.models.contrast import Contrast
from tljax.models.heads import Embedding
from tljax.tasks.spec import TaskSpec, choose, choose_pool, output_of

GROUPS = ("pair", "text", "label")
DIGITS = 6
"""Decimals of an embedding in a line of predictions."""


def contrastive(
    spec: TaskSpec,
    *,
    positives: str = "text",
    relevant: str | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    max_scale: float = 100.0,
) -> Task:
    """Images and texts in one space: the symmetric cross entropy of CLIP, with the rest of the batch as negatives.

    Gradient accumulation makes the batch that gives the negatives smaller; padding gives none.

    Args:
      spec: of a backbone with two towers. Its own head (the scale of the logits) is trained on.
      positives: what matches an image besides its own text: "pair": nothing; "text": equal texts; "label": the texts
        of records with its label. Several matches share the target's mass evenly (Yang et al. 2022).
      relevant: the same for the metrics, where that differs: what counts as found.
      captions: class → texts, for labelled images without texts; each time one of its class's is drawn.
      max_scale: the largest scale of the logits.

    Returns:
      A `Task` that is chosen by `mean_recall`, the mean of recall at 1, 5 and 10 in both directions over the whole
      split. Its predictions are `image_embeds` and `text_embeds` (B, D), whichever the records allow.

    Raises:
      UserError: a backbone without a common space, records without an image or a text, wrong options.
    """
    positives = choose("positives", positives, GROUPS)
    relevant = choose("relevant", relevant or positives, GROUPS)
    if "text_embeds" not in spec.outputs or "image_embeds" not in spec.outputs:
        raise UserError(f"config.task: contrastive needs a model of images and texts, and {spec.family} is none.")
    if max_scale < 1:
        raise UserError(f"config.task.max_scale is {max_scale!r}; it must be at least 1.")
    texts = None if captions is None else by_class_texts(spec.classes, captions, "captions")
    head = spec.head if isinstance(spec.head, Contrast) else Contrast(spec.config.logit_scale_init_value)

    def loss(outputs, targets):
        both = [
            losses.in_batch_cross_entropy(outputs[name], targets["group"], targets["valid"])
            for name in ("logits_per_image", "logits_per_text")
        ]
        return sum(both) / 2

    def measure(predictions, targets, records):
        images, texts, groups = predictions["image_embeds"], predictions["text_embeds"], own_numbers(targets["match"])
        # Equal texts are one candidate, and one query.
        first = np.sort(np.unique(groups, return_index=True)[1]) if relevant == "text" else np.arange(len(groups))
        found = {
            **metrics.retrieval(images, texts[first], groups, groups[first], prefix="image_to_text_"),
            **metrics.retrieval(texts[first], images, groups[first], groups, prefix="text_to_image_"),
        }
        return {"mean_recall": float(np.mean([x for name, x in found.items() if "recall" in name])), **found}

    return Task(
        name="contrastive",
        head=head.clone(limit=float(max_scale)),
        own_head=True,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=_targets,
        loss=loss,
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {name: outputs[name] for name in ("image_embeds", "text_embeds") if name in outputs},
        metrics=measure,
        decode=lambda predictions, records: embeddings(predictions),
        main=("mean_recall", "max"),
        prepare=lambda source, processor: (source, Pairs(processor, positives, ("image", "text"), texts, relevant)),
        question=lambda source, processor: (source, processor),
    )


def sentence_pairs(
    spec: TaskSpec,
    *,
    pool: str = "mean",
    positives: str = "text",
    temperature: float = 0.05,
    symmetric: bool = False,
) -> Task:
    """Embeddings of sentences from pairs that belong together, ranked above the rest of the batch.

    The loss is the multiple-negatives ranking loss: the cross entropy of a first text's cosines with all second texts,
    over the temperature. Inputs come as (B, 2, T): the processor's `pair` is "separate".

    Args:
      spec: see `TaskSpec`.
      pool: one of `spec.pools`, or "own".
      positives: as in `contrastive`; "text" speaks of the second text.
      temperature: above 0; 0.05 is sentence-transformers' scale of 20.
      symmetric: also rank the first texts for each second one, and take the mean.

    Returns:
      A `Task` that is chosen by `mean_reciprocal_rank`, of the second text for the first over the whole split. Its
      predictions are `first` and `second` (B, D), of length 1; `embedding` (B, D) for single texts.

    Raises:
      UserError: wrong options; records or inputs that are not pairs.
    """
    positives, pool = choose("positives", positives, GROUPS), choose_pool(spec, pool)
    if temperature <= 0:
        raise UserError(f"config.task.temperature is {temperature!r}; it must be above 0.")

    def inputs(batch):
        if "targets" not in batch:
            return batch["inputs"]
        faults = [f"{name} has the shape {x.shape}." for name, x in batch["inputs"].items() if x.shape[1] != 2]
        raise_faults("The task sentence_pairs needs inputs (B, 2, T); set the processor's pair='separate':", faults)
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch["inputs"].items()}

    def loss(outputs, targets):
        pairs = outputs["embedding"].reshape(-1, 2, outputs["embedding"].shape[-1]).astype(jnp.float32)
        scores = pairs[:, 0] @ pairs[:, 1].T / temperature
        forth = losses.in_batch_cross_entropy(scores, targets["group"], targets["valid"])
        if not symmetric:
            return forth
        return (forth + losses.in_batch_cross_entropy(scores.T, targets["group"], targets["valid"])) / 2

    def infer(model, variables, batch):
        from tljax.models.forward import forward

        x = forward(model, variables, inputs(batch))[0]["embedding"]
        return {"embedding": x} if "targets" not in batch else {"first": x[0::2], "second": x[1::2]}

    def measure(predictions, targets, records):
        groups = own_numbers(targets["match"])
        return {
            **metrics.retrieval(predictions["first"], predictions["second"], groups, groups),
            **metrics.retrieval(predictions["second"], predictions["first"], groups, groups, prefix="backward_"),
        }

    return Task(
        name="sentence_pairs",
        head=Embedding(pool),
        uses=output_of(pool),
        inputs=inputs,
        targets=_targets,
        loss=loss,
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {},
        metrics=measure,
        decode=lambda predictions, records: embeddings(predictions),
        main=("mean_reciprocal_rank", "max"),
        prepare=lambda source, processor: (source, Pairs(_separate(processor), positives, ("text", "text_b"))),
        question=lambda source, processor: (source, processor.replace(pair="joint")),
        infer=infer,
    )


def own_numbers(groups: np.ndarray) -> np.ndarray:
    """The numbers of groups (B,), where a negative one is replaced by one that no other row has."""
    return np.where(groups < 0, -1 - np.arange(len(groups)), groups)


def by_class_texts(
    classes: tuple[str, ...] | None, texts: Mapping[str, Sequence[str]], name: str
) -> tuple[tuple[str, ...], ...]:
    """The texts of each class, in the order of the classes.

    Raises:
      UserError: classes that are missing or not among the data's, or without a text; `name` is the option.
    """
    known = classes or ()
    given = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in texts.items()}
    faults = [f"{name} speaks of {key!r}. {suggest(key, known)}" for key in given if key not in known]
    faults += [f"{name} has no text for {key!r}." for key in known if not given.get(key)]
    raise_faults("The section config.task cannot be used:", faults)
    return tuple(given[key] for key in known)


def _separate(processor: Any) -> Any:
    if not hasattr(processor, "tokenizer"):
        raise UserError("config.task: sentence_pairs needs texts, and this checkpoint carries no tokenizer.")
    return processor.replace(pair="separate")


def _targets(batch: Mapping[str, Any]) -> dict[str, Any]:
    """`group` (B,), and `valid` (B,): which rows are no padding."""
    return {"group": batch["targets"]["group"], "valid": batch["weight"] > 0}


def embeddings(predictions: Mapping[str, Any]) -> list[dict[str, list[float]]]:
    """A line of numbers for each example and embedding."""
    columns = {name: np.round(np.asarray(x, np.float64), DIGITS).tolist() for name, x in predictions.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
