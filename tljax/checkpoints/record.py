"""The record of a step: what was saved, with a digest of each leaf, under a checksum."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals


class RecordHandler(ocp.JsonCheckpointHandler):
    """Writes a record that is put together in the thread that writes: no step waits for its digests."""

    async def async_save(self, directory: Any, item: None = None, args: Any | None = None) -> list[Any]:
        async def write() -> None:
            if jax.process_index() == 0:
                record = args.make()
                (directory / "metadata").write_text(json.dumps({**record, "crc32": _checksum(record)}))

        return [CommitFutureAwaitingContractedSignals(write(), name="record")]


def described(
    record: Mapping[str, Any], forms: Mapping[str, Any], digests: Callable[[], dict[str, str]]
) -> dict[str, Any]:
    """The record with the form and the digest of each leaf."""
    found = digests()
    leaves = {n: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": found[n]} for n, x in forms.items()}
    return {**record, "leaves": leaves}


@ocp.args.register_with_handler(RecordHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SaveRecord(ocp.args.CheckpointArgs):
    """`make()` returns the record; it is called in the thread that writes."""

    make: Callable[[], dict[str, Any]]


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a step, or None where it is missing or damaged."""
    try:
        record = json.loads((folder / "record" / "metadata").read_text(encoding="utf8"))
        checksum = record.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return record if _checksum(record) == checksum and record["step"] == int(folder.name) else None
