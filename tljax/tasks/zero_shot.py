"""Zero-shot classification: the names of the classes, written into prompts, are the classifier.

Radford et al. 2021, section 3.1; the classifier may then be trained on, together with the images' tower or without it
(Wortsman et al. 2022; Goyal et al. 2023).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import losses, metrics
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Model, Task
from tljax.models.contrast import Contrast, ZeroShot
from tljax.models.forward import forward
from tljax.models.heads import normalize
from tljax.tasks.classification import by_class
from tljax.tasks.contrastive import by_class_texts
from tljax.tasks.spec import TaskSpec

TEXTS = 256
"""Prompts that run through the text tower at a time."""


def zero_shot(
    spec: TaskSpec,
    *,
    templates: Sequence[str] | str = "a photo of a {}.",
    names: Mapping[str, str] | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
    max_scale: float = 100.0,
) -> Task:
    """Classification of images by the embeddings of prompts, without training or from there on.

    Several templates are an ensemble: a class's vector is the mean of its prompts' embeddings, scaled to length 1.

    Args:
      spec: of a backbone with two towers whose processor reads images and texts; needs `classes`.
      templates: texts with one `{}` for the name of a class.
      names: what stands in a prompt for a class, where that is not its name with `_` as a space.
      prompts: class → its whole prompts, equally many for each, in place of `templates` and `names`.
      max_scale: the largest scale of the logits.

    Returns:
      A `Task` like single-label classification, whose head starts as the prompts say.

    Raises:
      UserError: data without classes, templates without a place for the name, names of unknown classes, a backbone
        without a common space or a processor without a tokenizer.
    """
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    names = dict(names or {})
    if spec.classes is None:
        raise UserError("config.task: zero_shot needs data with classes, and the labels here have no names.")
    if "text_embeds" not in spec.outputs or "image_embeds" not in spec.outputs:
        raise UserError(f"config.task: zero_shot needs a model of images and texts, and {spec.family} is none.")
    faults = [f"The template {t!r} must hold one {{}}, where the name goes." for t in templates if t.count("{}") != 1]
    faults += ["There are no templates."] if not templates else []
    faults += [f"names speaks of {key!r}. {suggest(key, spec.classes)}" for key in names if key not in spec.classes]
    faults += [f"max_scale is {max_scale!r}; it must be at least 1."] if max_scale < 1 else []
    raise_faults("The section config.task cannot be used:", faults)
    words = [names.get(name, name.replace("_", " ")) for name in spec.classes]
    texts = [[template.replace("{}", word) for template in templates] for word in words]
    if prompts is not None:
        texts = by_class_texts(spec.classes, prompts, "prompts")
        if len(set(map(len, texts))) > 1:
            raise UserError("config.task.prompts must hold equally many for each class.")

    def fill(model, variables, processor):
        kernel = class_vectors(model, variables, processor, texts).T
        own = isinstance(model.head, Contrast)
        start = spec.config.logit_scale_init_value
        raw = variables["params"]["head"]["logit_scale"] if own else jnp.float32(start)
        return {"kernel": kernel, "logit_scale": raw}

    def predict(outputs):
        logits = outputs["logits"].astype(jnp.float32)
        return {"probabilities": jax.nn.softmax(logits), "label": jnp.argmax(logits, axis=-1).astype(jnp.int32)}

    def decode(predictions, records):
        both = zip(predictions["label"], predictions["probabilities"], strict=True)
        return [{"label": spec.classes[int(label)], "probabilities": by_class(spec.classes, p)} for label, p in both]

    return Task(
        name="zero_shot",
        head=ZeroShot(len(spec.classes), limit=float(max_scale)),
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: jax.nn.one_hot(batch["targets"], len(spec.classes), dtype=jnp.float32),
        loss=lambda outputs, targets: losses.softmax_cross_entropy(outputs["logits"], targets),
        weights=lambda batch: batch["weight"],
        predict=predict,
        metrics=lambda predictions, targets, records: metrics.classification(
            targets, predictions["label"], predictions["probabilities"], spec.classes
        ),
        decode=decode,
        main=("accuracy", "max"),
        prepare=lambda source, processor: (source, _both(processor).replace(reads="image")),
        fill=fill,
    )


def _both(processor: Any) -> Any:
    if not (hasattr(processor, "images") and hasattr(processor, "texts")):
        raise UserError(
            "config.task: zero_shot needs a checkpoint with a tokenizer and a preprocessor_config.json; this one "
            f"carries {'neither' if processor is None else f'only a {type(processor).__name__}'}."
        )
    return processor


def class_vectors(
    model: Model, variables: Mapping[str, Any], processor: Any, prompts: Sequence[Sequence[str]]
) -> jax.Array:
    """(Y, D), of length 1: for each class the mean of its prompts' embeddings, each of length 1.

    Args:
      model: with a text tower.
      variables: of the model.
      processor: reads images and texts.
      prompts: for each class its prompts, equally many.
    """
    texts = _both(processor).texts
    flat = [text for row in prompts for text in row]
    examples = [texts.example({"id": text, "text": text}) for text in flat]
    length = texts.length_for(max(map(texts.size_of, examples)))
    same = texts.replace(lengths=(length,))
    bare = model._replace(head=None)
    run = jax.jit(lambda given, inputs: forward(bare, given, inputs)[0]["text_embeds"])
    given = {"params": {"backbone": variables["params"]["backbone"]}, "batch_stats": {}}
    parts = []
    for start in range(0, len(examples), TEXTS):
        part = examples[start : start + TEXTS]
        missing = min(TEXTS, len(examples)) - len(part)
        batch = same.collate([*part, *[part[0]] * missing])
        inputs = {name: jnp.asarray(x) for name, x in batch.items() if name != "token_type_ids"}
        parts.append(run(given, inputs)[: len(part)].astype(jnp.float32))
    each = jnp.concatenate(parts).reshape(len(prompts), -1, parts[0].shape[-1])
    return normalize(np.asarray(each).mean(axis=1))
