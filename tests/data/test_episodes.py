"""Episodes: a function of seed and step alone, class by class, of different classes and examples."""

import itertools

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.episodes import DRAW, EVALUATION, Episodes, Sampler
from tljax.data.processors import ImageProcessor
from tljax.data.streams import train_stream

CLASSES = ("a", "b", "c", "d", "e")
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(5), (8, 6, 7, 6, 9)))
SOURCE = Source(
    [
        {"id": i, "image": RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8), "label": int(label)}
        for i, label in enumerate(LABELS)
    ],
    CLASSES,
    "letters",
)
SHAPE = Episodes(ways=3, shots=2, queries=4)
PIXELS = ImageProcessor(size=6, mean=0.0, std=1.0)


def take(count, start=0, **options):
    options = {"batch_size": 36, "seed": 3, "episodes": SHAPE, "augment": {"flip": True, "crop": 1}, **options}
    return list(itertools.islice(train_stream(SOURCE, PIXELS, start=start, **options), count))


def same(first, second):
    for name in ("index", "targets", "weight", "episode"):
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_array_equal(first["inputs"]["pixel_values"], second["inputs"]["pixel_values"])


def test_a_batch_holds_whole_episodes_class_by_class_without_repetition():
    batches = take(4)
    for n, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["episode"], np.repeat([2 * n, 2 * n + 1], SHAPE.size))
        np.testing.assert_array_equal(batch["targets"], LABELS[batch["index"]])
        assert (batch["weight"] == 1).all()
        for episode, labels in zip(*(batch[k].reshape(2, 3, 6) for k in ("index", "targets")), strict=True):
            assert len(set(episode.ravel())) == SHAPE.size
            assert (labels == labels[:, :1]).all() and len(set(labels[:, 0])) == 3
    drawn = np.stack([batch["index"].reshape(2, -1) for batch in batches]).reshape(8, -1)
    assert len({tuple(episode) for episode in drawn}) == 8


def test_a_batch_is_a_function_of_seed_and_step():
    batches = take(4)
    same(take(1, start=3)[0], batches[3])
    same(take(1)[0], batches[0])
    other = take(1, seed=4)[0]
    assert not np.array_equal(other["index"], batches[0]["index"])
    pairs = [take(2, shard=(i, 2)) for i in (0, 1)]
    for n in (0, 1):  # shards hold consecutive parts, so that the episodes keep their order
        for name in ("index", "targets", "episode"):
            joined = np.concatenate([part[n][name] for part in pairs])
            np.testing.assert_array_equal(joined, batches[n][name])


def test_processes_give_the_same_episodes():
    for mine, theirs in zip(take(2), take(2, workers=1), strict=True):
        same(mine, theirs)


def test_classes_and_examples_are_drawn_evenly():
    sampler = Sampler(LABELS, SHAPE, name="letters", seed=1)
    drawn = np.concatenate([sampler(n).reshape(3, 6)[:, :2].ravel() for n in range(3000)])  # as shots
    counts = np.bincount(LABELS[drawn], minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), 0.2, atol=0.01)
    for label in range(5):
        each = np.bincount(drawn, minlength=len(LABELS))[label == LABELS]
        np.testing.assert_allclose(each / each.sum(), 1 / len(each), rtol=0.15)


@pytest.mark.parametrize(("purpose", "positions"), [(DRAW, [21, 14, 22, 1]), (EVALUATION, [13, 23, 31, 29])])
def test_the_numbers_of_a_seed_stay(purpose, positions):
    sampler = Sampler(LABELS, Episodes(2, 1, 1), name="letters", seed=7, purpose=purpose)
    assert sampler(5).tolist() == positions


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        (LABELS, Episodes(6, 1, 1), "there are 5 classes, and ways is 6"),
        (LABELS, Episodes(3, 2, 5), r"b has 6 examples, and shots \+ queries is 7(.|\n)*d has 6 examples"),
        (LABELS, Episodes(1, 0, True), r"ways is 1(.|\n)*shots is 0(.|\n)*queries is True"),
        (None, SHAPE, "letters: episodes need one class a record, and these records have none"),
        (LABELS / 2, SHAPE, "and these records have other labels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(labels, shape, message):
    with pytest.raises(UserError, match=message):
        Sampler(labels, shape, name="letters", classes=CLASSES)


def test_a_stream_refuses_too():
    with pytest.raises(UserError, match="an episode of 3 ways with 2 shots and 4 queries has 18 examples"):
        take(1, batch_size=20)
    with pytest.raises(UserError, match="ways is 0"):
        take(1, episodes=Episodes(0, 1, 1))
    bare = SOURCE._replace(records=[{**record, "label": None} for record in SOURCE.records])
    with pytest.raises(UserError, match="letters: episodes need one class a record"):
        train_stream(bare, PIXELS, batch_size=18, episodes=SHAPE)
