"""Predictions of a whole split: in its order, padding dropped, batches of different lengths put together."""

import json

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from tljax.base.types import Task
from tljax.train.evaluate import UNKNOWN, collect, measure
from tljax.train.records import Records

HERE = SingleDeviceSharding(jax.devices()[0])


def batch(index, length):
    rows = len(index)
    targets = {
        "tags": np.arange(rows * length, dtype=np.int32).reshape(rows, length),
        "boxes": np.ones((rows, length, 4), np.float32),
    }
    return {
        "inputs": {"x": np.full((rows, length), index[0], np.float32)},
        "targets": targets,
        "index": np.array(index, np.int32),
    }


def test_batches_of_different_lengths_are_padded_and_put_in_order():
    batches = [batch([2, 0], 3), batch([1, -1], 2)]
    predictions, targets, index = collect(lambda b: {"score": b["inputs"]["x"]}, batches, HERE)
    assert index.tolist() == [0, 1, 2]
    assert predictions["score"].tolist() == [[2, 2, 2], [1, 1, 0], [2, 2, 2]]
    assert targets["tags"].tolist() == [[3, 4, 5], [0, 1, UNKNOWN], [0, 1, 2]]
    assert targets["boxes"][:, :, 0].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]


def test_metrics_see_the_records_and_pictures_become_files(tmp_path):
    def metrics(predictions, targets, records):
        names = [record["id"] for record in records]
        picture = {"title": names[0], "png": b"\x89PNG"}
        return {"count": float(len(predictions["score"])), "names": names, "pictures": [picture]}

    task = Task("", None, "hidden", *[None] * 5, metrics=metrics, decode=None, main=("count", "max"))
    numbers, tables = measure(task, {"score": np.zeros(2)}, None, [{"id": "a"}, {"id": "b"}])
    assert numbers == {"count": 2.0} and tables["names"] == ["a", "b"]
    records = Records(tmp_path)
    records.evaluation(3, "test", numbers, tables)
    records.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record["tables"]["pictures"] == [{"title": "a", "file": "pictures/test-0.png"}]
    assert (tmp_path / "pictures" / "test-0.png").read_bytes() == b"\x89PNG"
