"""A class for every pixel."""

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Task
from tljax.data.segmentation import IGNORED, MaskProcessor, at_image
from tljax.models.dense_heads import Segmenter, enlarged
from tljax.models.forward import forward
from tljax.models.heads import STARTS
from tljax.tasks.spec import TaskSpec, choose, choose_dropout

SHOWN_SIDE = 128
"""An evaluation keeps no larger a map of an image than this, for pictures."""
PICTURES = 6
PICTURE_SIDE = 256


def segmentation(
    spec: TaskSpec,
    *,
    classes: Sequence[str] | None = None,
    width: int = 128,
    dropout: float | None = 0.1,
    init: str = "normal",
    ignore: int = IGNORED,
    size: int | tuple[int, int] | None = None,
    place: str = "stretch",
) -> Task:
    """A light feature-pyramid head (`tljax.models.dense_heads.Segmenter`), and cross entropy a pixel.

    Logits are made at the finest map of the pyramid and enlarged to the input, bilinear; loss and metrics are taken at
    the input's size, where masks come by nearest neighbours. In training `config.data.NAME.augment` takes the options
    of `tljax.data.segmentation.MaskAugment`.

    Args:
      spec: needs a backbone with `pyramid` and a processor of images.
      classes: the names of the classes, for data that do not name them.
      width: channels of the head.
      dropout: rate before the last layer.
      init: how the last kernel starts: "zeros", "normal" or "he".
      ignore: the number in the masks of pixels that do not count.
      size: (height, width) of the input, or one number for both; None is the checkpoint's.
      place: "stretch": an image fills the input; "letterbox": it keeps its shape.

    Returns:
      A `Task`, chosen by `mean_iou`. Its predictions are, for records with masks, `confusion` (B, Y, Y), counts of
      pixels, rows are true classes, and `label` (B, h, w) uint8, at most `SHOWN_SIDE` a side; for records without,
      `label` alone at the input's size. `decode` gives `shares` (class → its share of the image) and `mask`: a grey
      PNG of class numbers, of the size of the stored image, in base64.

    Raises:
      UserError: no names of classes, or two sets of them; a backbone without a pyramid; an option out of range.
    """
    names = _class_names(spec, classes)
    _check(spec, width)
    maker = MaskProcessor(spec.processor, len(names), ignore=ignore, place=place, size=size)

    def prepare(source, processor):
        made = MaskProcessor(processor, len(names), ignore=ignore, place=place, size=size)
        return source._replace(classes=names), made

    def infer(model, variables, batch):
        outputs, _ = forward(model, variables, batch["inputs"])
        height, wide = batch["inputs"]["pixel_values"].shape[1:3]
        label = jnp.argmax(enlarged(outputs["logits"], (height, wide)), axis=-1).astype(jnp.uint8)
        if "mask" not in batch:
            return {"label": label}
        step = -(-max(height, wide) // SHOWN_SIDE)
        return {"confusion": count_pairs(batch["mask"], label, len(names)), "label": label[:, ::step, ::step]}

    def measure(predictions, targets, records):
        if "confusion" not in predictions:
            raise UserError("The task segmentation cannot be measured: the records have no masks.")
        found = scores(predictions["confusion"].sum(axis=0, dtype=np.int64), names)
        count = min(PICTURES, len(records))
        shown = [_shown(maker, records[i], predictions["label"][i], names) for i in range(count)]
        return {**found, "pictures": shown}

    def decode(predictions, records):
        return [_line(predictions["label"][i], records[i], names, maker) for i in range(len(records))]

    return Task(
        name="segmentation",
        head=Segmenter(len(names), width, choose_dropout(spec, dropout), choose("init", init, tuple(STARTS))),
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: {"mask": batch["mask"]},
        loss=lambda outputs, targets: pixel_cross_entropy(outputs["logits"], targets["mask"]),
        weights=lambda batch: jnp.sum(batch["mask"] != IGNORED, axis=(1, 2)) * batch["weight"],
        predict=lambda outputs: {"label": jnp.argmax(outputs["logits"], axis=-1).astype(jnp.uint8)},
        metrics=measure,
        decode=decode,
        main=("mean_iou", "max"),
        prepare=prepare,
        infer=infer,
    )


def pixel_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of −log softmax over the pixels of each image that count, (B,) float32; 0 where none does.

    Args:
      logits: (B, h, w, Y), enlarged to the size of the mask.
      mask: (B, H, W), classes, `IGNORED` where a pixel does not count.
    """
    logits = enlarged(logits, mask.shape[1:]).astype(jnp.float32)
    known = mask != IGNORED
    label = jnp.where(known, mask, 0).astype(jnp.int32)[..., None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label, axis=-1)[..., 0]
    return jnp.sum(jnp.where(known, losses, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(known, axis=(1, 2)), 1)


def count_pairs(mask: jax.Array, label: jax.Array, classes: int) -> jax.Array:
    """How often each pair of a true and a predicted class meets in each image, (B, Y, Y) int32, true classes first.

    Args:
      mask: (B, H, W), `IGNORED` where a pixel does not count.
      label: (B, H, W), predicted.
      classes: Y.
    """
    pair = mask.astype(jnp.int32) * classes + label.astype(jnp.int32)
    pair = jnp.where(mask == IGNORED, classes**2, pair).reshape(mask.shape[0], -1)
    counts = jax.vmap(lambda x: jnp.zeros(classes**2 + 1, jnp.int32).at[x].add(1))(pair)
    return counts[:, :-1].reshape(-1, classes, classes)


def scores(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Intersection over union and its kin, from counts over a whole split.

    Args:
      confusion: (Y, Y) counts of pixels, rows are true classes.
      classes: Y names.

    Returns:
      `mean_iou` (the Jaccard index) and `mean_f1` (the Dice coefficient), means over the classes that occur in the
      truth or the predictions; `pixel_accuracy`; `mean_accuracy`, the mean recall of the classes that occur in the
      truth. Tables: `per_class` (class, iou, precision, recall, f1, pixels), `confusion`, `classes`. What is 0/0 is 0.
    """
    right, true, found = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    columns = {
        "iou": _ratio(right, true + found - right),
        "precision": _ratio(right, found),
        "recall": _ratio(right, true),
        "f1": _ratio(2 * right, true + found),
    }
    occurring = true + found > 0
    rows = [
        {"class": str(name), **{key: float(column[i]) for key, column in columns.items()}, "pixels": int(true[i])}
        for i, name in enumerate(classes)
    ]
    return {
        "mean_iou": _mean(columns["iou"][occurring]),
        "mean_f1": _mean(columns["f1"][occurring]),
        "mean_accuracy": _mean(columns["recall"][true > 0]),
        "pixel_accuracy": float(right.sum() / max(confusion.sum(), 1)),
        "per_class": rows,
        "confusion": confusion.tolist(),
        "classes": list(classes),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _class_names(spec: TaskSpec, classes: Sequence[str] | None) -> tuple[str, ...]:
    if spec.classes is None and classes is None:
        raise UserError(
            "config.task: segmentation needs the names of the classes, and the data have none (no classes.txt): set "
            "config.task.classes, in the order of the numbers in the masks."
        )
    if spec.classes is not None and classes is not None and tuple(classes) != tuple(spec.classes):
        raise UserError(f"config.task.classes is {list(classes)}, and the data name {list(spec.classes)}.")
    return tuple(spec.classes if classes is None else classes)


def _check(spec: TaskSpec, width: int) -> None:
    faults = []
    if not spec.outputs.get("pyramid"):
        faults.append(f"segmentation needs a backbone with a feature pyramid, and {spec.family} has none.")
    if not isinstance(width, int) or width < 1:
        faults.append(f"width is {width!r}, and must be a whole number above 0.")
    raise_faults("The section config.task cannot be used:", faults)


def _line(label: np.ndarray, record: Mapping[str, Any], names: Sequence[str], maker: MaskProcessor) -> dict[str, Any]:
    """One prediction as JSON."""
    from PIL import Image

    mask = at_image(np.asarray(label), maker.processor.decode(record).size, maker.place)
    counts = np.bincount(mask.ravel(), minlength=len(names))
    shares = {name: round(float(n) / mask.size, 6) for name, n in zip(names, counts, strict=True) if n}
    return {"shares": shares, "mask": base64.b64encode(_png(Image.fromarray(mask))).decode("ascii")}


def _shown(maker: MaskProcessor, record: Mapping[str, Any], label: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A picture of an image, its true mask and the predicted one, side by side."""
    from PIL import Image

    pixels, mask = maker.view(record)
    image = Image.fromarray(pixels).convert("RGB")
    factor = PICTURE_SIDE / max(image.size)
    size = tuple(max(round(n * factor), 1) for n in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    masks = [np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in (mask, np.asarray(label))]
    panels = [np.asarray(image), *(overlay(np.asarray(image), m, len(names)) for m in masks)]
    gap = np.full((size[1], 4, 3), 255, np.uint8)
    row = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    return {"title": f"{record.get('id')}: image, truth, prediction", "png": _png(Image.fromarray(row))}


def overlay(image: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """`image` uint8 (H, W, 3) with the colours of its classes over it; what is ignored becomes white."""
    colours = np.full((IGNORED + 1, 3), 255, np.float32)
    for i in range(classes):
        # Steps of the golden ratio keep the hues of neighbouring numbers apart.
        colours[i] = np.array(colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.9, 0.4 if i == 0 else 1.0)) * 255
    return np.rint(0.45 * image + 0.55 * colours[mask]).astype(np.uint8)


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
