"""Detection through the config: a tiny YOLO and a tiny SSD learn to find squares; COCO's metrics; boxes in pixels."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.models.test_families import TINY_SSD
from tests.tiny import train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.images import ImageProcessor
from tljax.models.yolo import configure
from tljax.tasks.detection import coco_metrics, detection, drawn, in_pixels, lines, suppressed
from tljax.tasks.spec import TaskSpec

CFG = """[net]
width=32
height=32
channels=3

[convolutional]
filters=16
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky

[convolutional]
filters=32
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky

[convolutional]
filters=32
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0,1
anchors=8,8, 14,14
classes=2
num=2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16 pictures of 60 × 40 pixels with a red or a blue square."""
    folder, generator = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    (folder / "images").mkdir()
    found = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]}
    for i in range(16):
        side, x, y = (int(generator.integers(*limits)) for limits in ((12, 22), (0, 38), (0, 18)))
        pixels = np.full((40, 60, 3), 255, np.uint8)
        pixels[y : y + side, x : x + side] = (255, 0, 0) if i % 2 == 0 else (0, 0, 255)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        found["images"].append({"id": i, "file_name": f"{i}.png", "width": 60, "height": 40})
        box = {"image_id": i, "category_id": 1 + i % 2, "bbox": [x, y, side, side]}
        found["annotations"].append({"id": i + 1, **box})
    (folder / "train.json").write_text(json.dumps(found))
    return folder


def config(data, **model) -> dict:
    entry = dict(source=f"coco:{data}")
    return dict(
        seed=0,
        model=model,
        task=dict(name="detection", max_boxes=3, max_detections=5, candidates=50),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=8, steps=80, eval_batch_size=16),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


def plain(size) -> dict:
    return dict(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def trained(data):
    return train_steps(config(data, family="yolo", variant=dict(cfg=CFG), processor=plain(32)), 80)[0]


def test_a_yolo_finds_squares(trained):
    numbers, tables, predictions = evaluate_as_is(trained, "test")
    assert predictions["boxes"].shape == (16, 5, 4) and numbers["map50"] > 0.8
    assert set(numbers) >= {"map", "map75", "recall", "ap_red", "ap50_blue"}
    assert [row["boxes"] for row in tables["samples"]] == [8, 8]
    assert Image.open(io.BytesIO(tables["pictures"][0]["png"])).size == (60, 40)
    record = trained.sources["test"].records[0]
    (line,) = predict_records(trained, [record])
    best = line["detections"][0]
    assert line["id"] == "0.png" and best["label"] == "red" and best["score"] >= 0.3
    # In pixels of the stored image, which the input does not have.
    np.testing.assert_allclose(best["box"], record["boxes"][0], atol=5)


@pytest.mark.long
def test_an_ssd_trains_and_predicts(data):
    small = {**TINY_SSD, "image_size": [70, 76]}
    options = config(data, family="ssd", variant=small, processor=plain((70, 76)))
    options["task"]["place"] = "letterbox"
    experiment = build(options)
    job = make_job(experiment)
    batch = next(job.batches(0))
    first = None
    state = job.state
    for _ in range(8):
        state, records = job.step(state, batch)
        first = first if first is not None else float(records["loss"])
    assert float(records["loss"]) < first
    _, _, predictions = evaluate_as_is(experiment, "test")
    assert predictions["boxes"].shape == (16, 5, 4) and np.ptp(predictions["boxes"]) <= 1


def test_metrics_are_pycocotools_and_the_perfect_is_one():
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 50, (6, 3, 2))
    boxes = np.concatenate([low, low + generator.uniform(8, 40, (6, 3, 2))], -1)
    labels = np.array([[0, 1, 0]] * 6)
    image, pairs = np.zeros((100, 120, 3), np.uint8), list(zip(boxes, labels, strict=True))
    records = [{"id": i, "image": image, "boxes": b, "labels": n} for i, (b, n) in enumerate(pairs)]
    classes = ("a", "b", "c")
    perfect = [{"boxes": b, "labels": n, "scores": np.ones(3), "size": (120, 100)} for b, n in pairs]
    found = coco_metrics(perfect, records, classes, 100)
    assert found["map"] == found["map50"] == found["ap_a"] == found["recall"] == pytest.approx(1)
    assert found["ap_c"] == 0 and found["samples"][2]["boxes"] == 0  # no such boxes: not in the mean
    nothing = [{**one, **{name: one[name][:0] for name in ("boxes", "labels", "scores")}} for one in perfect]
    assert coco_metrics(nothing, records, classes, 100)["map"] == 0
    # Half of the boxes, all right: precision 1 up to a recall of a half, which is 51 of 101 points.
    half = perfect[:3] + nothing[3:]
    assert coco_metrics(half, records, classes, 100)["map"] == pytest.approx(51 / 101)
    ignored = [{**record, "ignore": n == 1} for record, n in zip(records, labels, strict=True)]
    assert coco_metrics(half, ignored, classes, 100)["ap_b"] == 0
    assert coco_metrics(perfect, ignored, classes, 100)["ap_a"] == pytest.approx(1)
    assert len(drawn(perfect, records, classes, 0.5)) == 6
    assert lines({**perfect[0], "scores": np.array([0.9, 0.2, 0.5])}, classes, 0.5)["detections"][1]["label"] == "a"


def test_duplicates_go_and_what_remains_is_in_pixels():
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.01, 0, 0.5, 0.5], [0.5, 0.5, 1.2, 1], [0, 0, 0.5, 0.5]]])
    scores = np.array([[[0.9, 0], [0.8, 0], [0, 0.7], [0, 0.001]]])
    options = dict(candidates=3, iou_threshold=0.5, score_threshold=0.01, max_detections=4)
    found = jax.tree.map(np.asarray, suppressed(boxes, scores, **options))
    assert found["labels"].tolist() == [[0, 1, -1, -1]]
    records = [{"image": np.zeros((40, 80, 3), np.uint8)}]
    (stretched,) = in_pixels(found, records, (32, 32), "stretch")
    np.testing.assert_allclose(stretched["boxes"], [[0, 0, 40, 20], [40, 20, 80, 40]], atol=1e-5)
    (boxed,) = in_pixels(found, records, (32, 32), "letterbox")  # 8 of 32 rows are empty above and below
    np.testing.assert_allclose(boxed["boxes"], [[0, 0, 40, 20], [40, 20, 80, 40]], atol=1e-5)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dict(head="own"), "the checkpoint has no detector; the data have 2"),
        (dict(place="leter"), "Did you mean 'letterbox'"),
        (dict(loss=dict(clases=1.0)), r"loss\.clases does not exist\. Did you mean 'classes'"),
        (dict(score_threshold=2.0, candidates=0), "(?s)candidates is 0.*score_threshold is 2.0"),
        (dict(augment=dict(flipp=True)), "Did you mean 'flip'"),
        (dict(max_boxes=0), "max_boxes is 0"),
    ],
)
def test_wrong_options_are_named(task, message):
    reader = ImageProcessor(**plain(32))
    spec = TaskSpec(("red", "blue"), "mean", ("mean",), family="yolo", config=configure({"cfg": CFG}), processor=reader)
    with pytest.raises(UserError, match=message):
        detection(spec, **task).prepare(Source([], spec.classes, "s"), reader)


def test_other_backbones_and_sizes_are_refused():
    reader = ImageProcessor(**plain(32))
    spec = TaskSpec(("red",), "mean", ("mean",), family="bert", processor=reader)
    with pytest.raises(UserError, match=r"bert is none\. Accepted: yolo, ssd"):
        detection(spec)
    with pytest.raises(UserError, match="needs data with classes"):
        detection(spec._replace(classes=None))
    task = detection(spec._replace(family="yolo", config=configure({"cfg": CFG})), place="letterbox")
    with pytest.raises(UserError, match="all data have one size"):
        task.prepare(Source([], ("red",), "s"), reader.replace(size=64))
