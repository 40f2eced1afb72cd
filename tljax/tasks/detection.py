"""Boxes around the objects in an image, with a class and a score each."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Task
from tljax.data.detection import BoxProcessor, boxes_of, image_size, placement
from tljax.models import ssd, yolo
from tljax.models.boxes import nms
from tljax.tasks.detection_losses import ssd_loss, yolo_loss
from tljax.tasks.spec import TaskSpec, choose

PICTURES = 6
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
TRUTH = "#ffffff"


class Detector(NamedTuple):
    """What differs between the kinds of detectors.

    Attributes:
      head: linen module.
      loss: (outputs, targets) → (B,).
      found: outputs → (boxes (B, N, 4) as shares of the input, scores (B, N, Y)).
    """

    head: Any
    loss: Any
    found: Any


def detection(
    spec: TaskSpec,
    *,
    head: str = "new",
    place: str = "stretch",
    max_boxes: int = 100,
    augment: Mapping[str, Any] | None = None,
    max_detections: int = 100,
    candidates: int = 1000,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    shown_score: float = 0.3,
    loss: Mapping[str, float] | None = None,
) -> Task:
    """Detection by the heads of YOLO and SSD.

    Args:
      spec: needs `classes`, a processor of images, and a backbone of the families yolo or ssd.
      head: "new", or "own": the checkpoint's own, which must have as many classes as the data.
      place: how an image lies in the input: "stretch" or "letterbox".
      max_boxes: the most boxes that an image has.
      augment: options of `tljax.data.detection.BoxAugment`, applied in training; None changes nothing.
      max_detections: the most boxes that are found in an image.
      candidates: so many predictions with the greatest scores go into the suppression of duplicates.
      score_threshold: predictions below it are dropped.
      iou_threshold: of predictions of one class that overlap by more, only the best stays.
      shown_score: what `predict` writes and pictures show has at least this score.
      loss: options of `tljax.tasks.detection_losses.yolo_loss` or `ssd_loss`.

    Returns:
      A `Task` that is chosen by `map`, COCO's mean average precision over IoUs from 0.5 to 0.95. Its predictions are
      `boxes` (B, K, 4) as shares of the input, `scores` (B, K) and `labels` (B, K), −1 where there is none.

    Raises:
      UserError: a backbone without such heads, data without classes, an own head with other classes, wrong options.
    """
    if spec.classes is None:
        raise UserError("config.task: detection needs data with classes, and the labels here have no names.")
    own = choose("head", head, ("new", "own")) == "own"
    _check(
        {"max_detections": max_detections, "candidates": candidates},
        {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "shown_score": shown_score},
    )
    detector = _detector(spec, own, dict(loss or {}))

    size = getattr(spec.processor, "size", None)

    def prepare(source, processor):
        if place == "letterbox" and getattr(processor, "size", size) != size:
            raise UserError(f"{source.name}: with place='letterbox' all data have one size, {size}.")
        return source, BoxProcessor(processor, place, max_boxes, augment)

    def predict(outputs):
        return suppressed(
            *detector.found(outputs),
            candidates=candidates,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )

    def measure(predictions, targets, records):
        found = in_pixels(predictions, records, size, place)
        return {
            **coco_metrics(found, records, spec.classes, max_detections),
            "pictures": drawn(found, records, spec.classes, shown_score),
        }

    def decode(predictions, records):
        return [lines(one, spec.classes, shown_score) for one in in_pixels(predictions, records, size, place)]

    return Task(
        name="detection",
        head=detector.head,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=detector.loss,
        weights=lambda batch: batch["weight"],
        predict=predict,
        metrics=measure,
        decode=decode,
        main=("map", "max"),
        prepare=prepare,
    )


def _check(counts: Mapping[str, Any], shares: Mapping[str, float]) -> None:
    faults = [
        f"{name} is {value!r}, and must be a whole number above 0."
        for name, value in counts.items()
        if not isinstance(value, int) or value < 1
    ]
    faults += [
        f"{name} is {value!r}, and must be from 0 to 1." for name, value in shares.items() if not 0 <= value <= 1
    ]
    raise_faults("The section config.task cannot be used:", faults)


def _detector(spec: TaskSpec, own: bool, options: Mapping[str, float]) -> Detector:
    kinds = {"yolo": (yolo.YoloHead, _yolo, yolo_loss), "ssd": (ssd.SsdHead, _ssd, ssd_loss)}
    if spec.family not in kinds:
        raise UserError(
            f"config.task: detection needs a backbone with maps for it, and {spec.family} is none. "
            f"Accepted: {', '.join(kinds)}."
        )
    kind, make, loss = kinds[spec.family]
    accepted = [name for name, default in (loss.__kwdefaults__ or {}).items() if isinstance(default, float)]
    wrong = [f"loss.{name} does not exist. {suggest(name, accepted)}" for name in options if name not in accepted]
    raise_faults("The section config.task cannot be used:", wrong)
    if own:
        count = spec.head.classes if isinstance(spec.head, kind) else None
        if count != len(spec.classes):
            held = "no detector" if count is None else f"one of {count} classes"
            raise UserError(
                f"config.task.head is 'own', and the checkpoint has {held}; the data have {len(spec.classes)}. "
                "Use head='new'."
            )
    return make(spec, spec.head if own else None, options)


def _yolo(spec: TaskSpec, head: Any, options: Mapping[str, float]) -> Detector:
    head = head or yolo.make_head(spec.config, len(spec.classes))
    halvings = [d.source.reduction for d in yolo.detectors(spec.config)]

    def input_size(raw: Sequence[jax.Array]) -> tuple[int, int]:
        return raw[0].shape[1] * halvings[0], raw[0].shape[2] * halvings[0]

    def loss(outputs, targets):
        return yolo_loss(outputs["raw"], targets, head, input_size(outputs["raw"]), **options)

    def found(outputs):
        raw = outputs["raw"]
        return yolo.decode(raw, head.anchors, input_size(raw), scale_x_y=head.scale_x_y, new_coords=head.new_coords)

    return Detector(head, loss, found)


def _ssd(spec: TaskSpec, head: Any, options: Mapping[str, float]) -> Detector:
    def found(outputs):
        offsets, logits = (outputs[name].astype(jnp.float32) for name in ("offsets", "logits"))
        return ssd.decode(offsets, outputs["default_boxes"]), jax.nn.softmax(logits)[..., 1:]

    return Detector(
        head or ssd.make_head(spec.config, len(spec.classes)),
        lambda outputs, targets: ssd_loss(outputs, targets, **options),
        found,
    )


def suppressed(boxes: jax.Array, scores: jax.Array, *, candidates: int, **options: Any) -> dict[str, jax.Array]:
    """`boxes` (B, K, 4) inside the input, `scores` (B, K), `labels` (B, K), without duplicates.

    Args:
      boxes: (B, N, 4) as shares of the input.
      scores: (B, N, Y).
      candidates: see `detection`.
      options: of `tljax.models.boxes.nms`.
    """

    def one(boxes, scores):
        _, best = jax.lax.top_k(scores.max(axis=1), min(candidates, len(scores)))
        found = nms(jnp.clip(boxes[best], 0, 1), scores[best], **options)
        return {name: found[name] for name in ("boxes", "scores", "labels")}

    return jax.vmap(one)(boxes, scores)


def in_pixels(
    predictions: Mapping[str, np.ndarray], records: Sequence[Mapping[str, Any]], size: tuple[int, int], place: str
) -> list[dict[str, np.ndarray]]:
    """For each record what was found: `boxes` in pixels of its stored image, `scores`, `labels`, `size` (W, H)."""
    found = []
    for i, (boxes, scores, labels) in enumerate(
        zip(predictions["boxes"], predictions["scores"], predictions["labels"], strict=True)
    ):
        there, full = np.asarray(labels) >= 0, image_size(records[i])
        pixels = placement(full, size, place).pixels(np.asarray(boxes, np.float64)[there], full)
        found.append({"boxes": pixels, "scores": scores[there], "labels": labels[there], "size": full})
    return found


def coco_metrics(
    found: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], classes: Sequence[str], most: int
) -> dict[str, Any]:
    """COCO's average precisions, by pycocotools: `map`, `map50`, `map75`, `recall`, and those of each class.

    Boxes that are marked `ignore` count as COCO's crowds. A class without boxes has no precision, and is left out of
    the means.

    Args:
      found: from `in_pixels`.
      records: with `boxes`, `labels` and perhaps `ignore`.
      classes: their names.
      most: detections of an image that count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = COCO(), []
    annotations: list[dict[str, Any]] = []
    for i, one in enumerate(found):
        for box, label, ignore in zip(*boxes_of(records[i], one["size"]), strict=True):
            sized = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            number = len(annotations) + 1  # COCO takes an id of 0 for no match
            entry = {"id": number, "image_id": i, "category_id": int(label), "iscrowd": int(ignore)}
            annotations.append({**entry, "bbox": sized, "area": sized[2] * sized[3]})
        for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            sized = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            results.append({"image_id": i, "category_id": int(label), "bbox": sized, "score": float(score)})
    counts = np.bincount([a["category_id"] for a in annotations if not a["iscrowd"]], minlength=len(classes))
    if results:
        truth.dataset = {
            "images": [{"id": i, "width": one["size"][0], "height": one["size"][1]} for i, one in enumerate(found)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.params.maxDets = [1, 10, most]
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"][..., 0, 2], evaluation.eval["recall"][..., 0, 2]
    else:
        there = np.where(counts > 0, 0.0, -1.0)
        precision, recall = np.tile(there, (10, 101, 1)), np.tile(there, (10, 1))
    each = [(_mean(precision[..., k]), _mean(precision[0, :, k])) for k in range(len(classes))]
    return {
        "map": _mean(precision),
        "map50": _mean(precision[0]),
        "map75": _mean(precision[5]),
        "recall": _mean(recall),
        **{f"ap_{name}": all_ for name, (all_, _) in zip(classes, each, strict=True)},
        **{f"ap50_{name}": half for name, (_, half) in zip(classes, each, strict=True)},
        "samples": [
            {"class": name, "boxes": int(count), "AP": round(all_, 4), "AP at IoU 0.5": round(half, 4)}
            for name, count, (all_, half) in zip(classes, counts, each, strict=True)
        ],
    }


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined; 0 where nothing is."""
    known = values[values >= 0]
    return float(known.mean()) if known.size else 0.0


def lines(one: Mapping[str, Any], classes: Sequence[str], least: float) -> dict[str, Any]:
    """What was found in an image, for a JSON line: boxes in pixels of the stored image, best first."""
    rows = zip(one["labels"], one["scores"], one["boxes"], strict=True)
    return {
        "detections": [
            {"label": classes[int(label)], "score": round(float(score), 6), "box": np.round(box, 2).tolist()}
            for label, score, box in rows
            if score >= least
        ]
    }


def drawn(
    found: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], classes: Sequence[str], least: float
) -> list[dict[str, Any]]:
    """The first images, with true boxes in white and found ones in colours: [{"title", "png"}]."""
    from PIL import ImageDraw

    from tljax.data.images import ImageProcessor

    reader, pictures = ImageProcessor(), []
    for i, one in enumerate(found[:PICTURES]):
        record = records[i]
        image = reader.decode(record)
        pen, width = ImageDraw.Draw(image), max(1, max(image.size) // 250)
        for box in boxes_of(record, image.size)[0]:
            pen.rectangle(box.tolist(), outline=TRUTH, width=width)
        for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            if score >= least:
                colour = COLOURS[int(label) % len(COLOURS)]
                pen.rectangle(box.tolist(), outline=colour, width=width)
                pen.text((box[0] + 2, box[1] + 1), f"{classes[int(label)]} {score:.2f}", fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        pictures.append({"title": str(record.get("id", i)), "png": buffer.getvalue()})
    return pictures
