"""Reading records: one by one through indexing, or many at once where the records know how."""

from collections.abc import Sequence
from typing import Any

CHUNK = 1024


def read_many(records: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The records at `indices`; reading them together is up to fifty times faster from an array_record."""
    if hasattr(records, "__getitems__"):
        return records.__getitems__([int(i) for i in indices])
    return [records[int(i)] for i in indices]


def read_labels(records: Any) -> list[Any]:
    """The label of every record, None where it has none."""
    return records.labels() if hasattr(records, "labels") else labels_in_chunks(records)


def labels_in_chunks(records: Any) -> list[Any]:
    """The label of every record, from the records themselves."""
    places, labels = range(len(records)), []
    for start in range(0, len(records), CHUNK):
        labels += [record.get("label") for record in read_many(records, places[start : start + CHUNK])]
    return labels
