"""Subsets: balanced, stratified, complementary, and the same on every machine."""

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.subsets import class_weights, labels_of, subset

CLASSES = ("a", "b", "c")
COUNTS = (60, 30, 10)


@pytest.fixture
def source():
    labels = np.repeat([0, 1, 2], COUNTS)[np.arange(100) * 37 % 100]
    return Source([{"id": i, "text": str(i), "label": int(n)} for i, n in enumerate(labels)], CLASSES, "made")


def _ids(source) -> list[int]:
    return [source.records[i]["id"] for i in range(len(source.records))]


def _counts(source) -> list[int]:
    return np.bincount(labels_of(source), minlength=3).tolist()


def test_nothing_asked_gives_the_source_itself(source):
    assert subset(source, seed=3) is source


def test_few_shot_is_balanced_and_moves_with_the_seed(source):
    few = subset(source, shots_per_class=8, seed=1)
    assert _counts(few) == [8, 8, 8]
    assert _ids(few) == sorted(_ids(few)) == _ids(subset(source, shots_per_class=8, seed=1))
    assert _ids(few) != _ids(subset(source, shots_per_class=8, seed=2))
    with pytest.raises(UserError, match="'c' has 10, and 11 are asked for"):
        subset(source, shots_per_class=11)


@pytest.mark.parametrize(("hold_out", "counts"), [(0.2, [12, 6, 2]), (10, [6, 3, 1]), (0.5, [30, 15, 5])])
def test_hold_out_is_stratified_and_has_its_complement(source, hold_out, counts):
    held, rest = (subset(source, hold_out=hold_out, take=take, seed=4) for take in ("held_out", "rest"))
    assert _counts(held) == counts
    assert sorted(_ids(held) + _ids(rest)) == list(range(100))


def test_hold_out_of_scores_is_plain(source):
    scored = source._replace(records=[{**r, "label": r["id"] / 7} for r in source.records], classes=None)
    held = subset(scored, hold_out=0.25, take="held_out")
    assert len(held.records) == 25
    assert labels_of(held).dtype == np.float64


def test_the_parts_of_a_quickstart_do_not_overlap(source):
    parts = [
        subset(source, hold_out=40, shots_per_class=2, seed=5),
        subset(source, hold_out=40, take="held_out", limit=15, seed=5),
        subset(source, hold_out=40, take="held_out", skip=15, seed=5),
    ]
    assert [len(p.records) for p in parts] == [6, 15, 25]
    ids = [i for part in parts for i in _ids(part)]
    assert len(set(ids)) == len(ids)
    assert set(_ids(parts[1]) + _ids(parts[2])) == set(_ids(subset(source, hold_out=40, take="held_out", seed=5)))
    assert _counts(parts[1])[1] > 0  # `limit` does not take the first records of a sorted set


def test_classes_are_filtered_and_renumbered_in_the_order_given(source):
    two = subset(source, classes=("c", 0))
    assert two.classes == ("c", "a")
    assert _counts(two)[:2] == [10, 60]
    first = two.records[0]
    assert CLASSES[source.records[first["id"]]["label"]] == two.classes[first["label"]]
    assert _counts(subset(source, classes=("c", "b"), shots_per_class=4))[:2] == [4, 4]
    assert _counts(subset(two, classes=("a",)))[:1] == [60]
    with pytest.raises(UserError, match=r"no class 'd'(.|\n)*Accepted: a, b, c"):
        subset(source, classes=("d",))
    with pytest.raises(UserError, match="stands twice"):
        subset(source, classes=("a", 0))


def test_choices_depend_on_nothing_but_the_seed(source):
    # Written down once: another platform or version must choose the same.
    assert _ids(subset(source, limit=6, seed=0)) == [4, 7, 10, 18, 35, 41]
    assert _ids(subset(source, hold_out=6, take="held_out", seed=0)) == [2, 3, 11, 13, 20, 92]


def test_class_weights_balance(source):
    weights = class_weights(source)
    np.testing.assert_allclose(weights, [100 / 180, 100 / 90, 100 / 30], rtol=1e-6)
    assert np.sum(weights[labels_of(source)]) == pytest.approx(100)
    from sklearn.utils.class_weight import compute_class_weight

    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels_of(source))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    with pytest.raises(UserError, match="one class a record"):
        class_weights(source._replace(records=[{"label": 0.5}]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"take": "held"}, "Did you mean 'held_out'"),
        ({"hold_out": 100}, "hold_out is 100"),
        ({"hold_out": 0}, "hold_out is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"skip": -1}, "skip is -1"),
        ({"skip": 100}, "Nothing is left"),
        ({"shots_per_class": 1.5}, r"shots_per_class is 1\.5"),
    ],
)
def test_wrong_choices(source, options, message):
    with pytest.raises(UserError, match=message):
        subset(source, **options)


def test_labels_that_are_missing_in_part(source):
    broken = source._replace(records=[*source.records[:3], {"id": 4, "text": "x"}])
    with pytest.raises(UserError, match="1 of 4 records have no label"):
        subset(broken, shots_per_class=1)
    assert labels_of(source._replace(records=[{"text": "x"}])) is None
