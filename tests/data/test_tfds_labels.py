"""The labels of a prepared split are read once in a process, whoever asks."""

import uuid

from tljax.data.records import read_labels
from tljax.data.tfds_sets import TfdsRecords


class Counted:
    """Records that count how often they are read."""

    def __init__(self, count: int):
        self.count, self.read = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices) -> list[dict]:
        self.read += len(indices)
        return [{"text": b"a", "stars": i % 5} for i in indices]


def test_labels_are_read_once_for_each_split_and_column():
    place = str(uuid.uuid4())
    records = Counted(2500)
    first, again = (TfdsRecords(records, {"label": "stars"}, (place, 1, "train")) for _ in range(2))
    assert read_labels(first) == read_labels(again) == [i % 5 for i in range(2500)]
    assert records.read == 2500
    assert first.__getitems__([7, 3])[0] == {"id": 7, "label": 2}
    # Another split, another preparation and another column are others.
    for columns, where in (
        ({"label": "stars"}, (place, 1, "test")),
        ({"label": "stars"}, (place, 2, "train")),
        ({"text": "text"}, (place, 1, "train")),
    ):
        other = Counted(10)
        labels = read_labels(TfdsRecords(other, columns, where))
        assert labels == ([i % 5 for i in range(10)] if "label" in columns else [None] * 10) and other.read == 10
