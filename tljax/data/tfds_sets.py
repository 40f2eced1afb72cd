"""Sources from TFDS: `tfds:NAME[:CONFIG]` and our own `tljax:NAME[:CONFIG]`, read from array_record by random access.

TensorFlow is never imported. Images stay encoded; text becomes str.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.base.types import Source
from tljax.data.prepare import cache_dir, data_folder, prepared_folder, quiet
from tljax.data.records import labels_in_chunks
from tljax.data.roles import RAW, choose_columns, choose_split

CLASSED = ("label", "tags", "labels", "mask")
"""The roles whose feature names the classes."""


_LABELS: dict[tuple, list[Any]] = {}
"""(Prepared split, column) → its labels. Several entries of a config often read one split, each for its own choice."""


class TfdsRecords:
    """The records of a TFDS data source under our names; `id` is the position where the set has none.

    Args:
      records: of TFDS.
      columns: role → feature.
      where: what tells the prepared split from all others.
    """

    def __init__(self, records: Any, columns: Mapping[str, str], where: tuple):
        self._records, self._where = records, where
        self._roles = {"label" if role == "score" else role: name for role, name in columns.items()}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._record(int(index), self._records[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._record(i, e) for i, e in zip(indices, self._records.__getitems__(indices), strict=True)]

    def labels(self) -> list[Any]:
        """All labels, None where there are none; read once in a process."""
        key = (*self._where, self._roles.get("label"))
        if key not in _LABELS:
            _LABELS[key] = labels_in_chunks(self)
        return _LABELS[key]

    def _record(self, index: int, example: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": index, **{role: _plain(example[name], role) for role, name in self._roles.items()}}


def _plain(value: Any, role: str) -> Any:
    """A feature as str, int, float or list; what is encoded, pixels and boxes as they are."""
    if role in (*RAW, "boxes"):
        return value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [_plain(each, role) for each in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def open_own(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Our own data set, `NAME` or `NAME:CONFIG`; prepared on first use."""
    name, _, config = rest.partition(":")
    folder = prepared_folder(name, config=config or None, data_dir=data_dir)
    return _open(folder, f"tljax:{rest}", split, columns, classes)


def open_tfds(
    rest: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Any TFDS data set: `NAME`, `NAME:CONFIG` (`glue:mrpc`) or `NAME:CONFIG:VERSION`.

    It is looked for, prepared as array_record, in `data_dir`, in TFDS's own folder (TFDS_DATA_DIR) and in our cache;
    where it is in none of them, TFDS downloads and prepares it into our cache.
    """
    name = rest.replace(":", "/")
    folders = [data_folder(data_dir), os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), cache_dir() / "tfds"]
    for folder in [Path(f).expanduser() for f in folders if f]:
        found = _newest(folder / name)
        if found is not None:
            return _open(found, f"tfds:{rest}", split, columns, classes)
    return _open(_prepared_by_tfds(name), f"tfds:{rest}", split, columns, classes)


def _newest(folder: Path) -> Path | None:
    """The newest prepared version in `folder`, or `folder` itself where it is one."""
    if (folder / "dataset_info.json").is_file():
        return folder
    versions = [p.parent for p in folder.glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json")]
    return max(versions, key=lambda p: [int(n) for n in p.name.split(".")], default=None)


def _prepared_by_tfds(name: str) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=cache_dir() / "tfds", file_format="array_record", try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = suggest(name.split("/")[0], known).split("Accepted")[0]
        raise UserError(f"TFDS has no {name!r}: {str(error).splitlines()[0]} {near}".strip()) from error
    try:
        with quiet():
            builder.download_and_prepare(
                file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except Exception as error:
        # Each builder fails in its own way: without network, without a manual download, without TensorFlow.
        raise UserError(
            f"tfds:{name} is not prepared, and preparing it failed: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}\nWhere TensorFlow is installed, run: "
            f"tfds build {name} --file_format=array_record --data_dir=FOLDER, and name that folder in TFDS_DATA_DIR."
        ) from error
    return Path(builder.data_dir)


def _open(
    folder: Path, where: str, split: str, columns: Mapping[str, str] | None, classes: Sequence[str] | None
) -> Source:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    features = dict(sorted(builder.info.features.items()))
    chosen = choose_columns(features, columns, where=where, guess=_guess(features))
    if "[" not in split and "+" not in split:  # TFDS also takes parts and sums: train[:80%]
        choose_split(split, [*builder.info.splits, "all"], where=where)
    encoded = {name: tfds.decode.SkipDecoding() for name, feature in features.items() if _is(feature, "Image")}
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError as error:
        raise UserError(
            f"{where} is prepared in {folder} in a format without random access. Prepare it again with "
            "--file_format=array_record."
        ) from error
    except ValueError as error:
        raise UserError(f"{where} has no split {split!r}: {str(error).splitlines()[0]}") from error
    names = next((_class_names(features[chosen[role]]) for role in CLASSED if role in chosen), None)
    if classes is not None and names is not None and tuple(classes) != names:
        raise UserError(f"{where} has its own classes {list(names)}; choose from them with `classes` of the entry.")
    written = (folder / "dataset_info.json").stat().st_mtime_ns
    return Source(TfdsRecords(records, chosen, (str(folder), written, split)), names, f"{where}/{split}")


def _is(feature: Any, kind: str) -> bool:
    return any(c.__name__ == kind for c in type(feature).__mro__)


def _guess(features: Mapping[str, Any]) -> dict[str, str]:
    """role → feature by type, where there is one image, or there are one or two texts, and one class label.

    Of two texts the first by name is `text`: TFDS reads the features of a prepared set in no certain order.
    """
    by_kind = {
        kind: sorted(name for name, feature in features.items() if _is(feature, kind))
        for kind in ("Image", "Text", "ClassLabel")
    }
    guess: dict[str, str] = {}
    texts = [name for name in by_kind["Text"] if name not in ("id", "idx")]
    if len(by_kind["Image"]) == 1:
        guess["image"] = by_kind["Image"][0]
    elif 1 <= len(texts) <= 2:
        guess.update(zip(("text", "text_b"), texts, strict=False))
    if guess and len(by_kind["ClassLabel"]) == 1:
        guess["label"] = by_kind["ClassLabel"][0]
    return guess


def _class_names(feature: Any) -> tuple[str, ...] | None:
    feature = getattr(feature, "feature", feature)  # a sequence of labels: several classes an example
    return tuple(feature.names) if _is(feature, "ClassLabel") else None
