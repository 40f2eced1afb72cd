"""Preparing a data set once: raw files → array_record in the cache, whole or not at all."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.base.tables import lookup, suggest
from tljax.data import BUILDERS


def cache_dir() -> Path:
    """The folder of everything that can be made again: TLJAX_CACHE, or ~/.cache/tljax."""
    return Path(os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax").expanduser()


def data_folder(data_dir: str | os.PathLike | None) -> Path | None:
    """The folder of raw data: the argument, or TLJAX_DATA, or None. Raises `UserError` where it does not exist."""
    value = data_dir or os.environ.get("TLJAX_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(f"The data folder {folder} does not exist (--data_dir, or TLJAX_DATA).")
    return folder


def prepared_folder(name: str, *, config: str | None = None, data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of our data set `name`, prepared now if it was not.

    It is made beside its place and renamed, so that a reader sees all of it or nothing; of two processes that make it
    at once, the later one throws its own away. Its path holds the origin of the raw files: other files, or another
    version of the package that carries them, are another prepared set.

    Args:
      name: a key of `BUILDERS`.
      config: the builder's config, where it has several; default the first.
      data_dir: the folder of raw data, default TLJAX_DATA. Raw files that are not there are downloaded.

    Raises:
      UserError: no such name or config; the raw files are unusable; they are absent and cannot be downloaded.
    """
    builder_class = lookup(BUILDERS, name, what="data set")
    configs = [c.name for c in builder_class.BUILDER_CONFIGS]
    if config is not None and config not in configs:
        raise UserError(f"The data set {name!r} has no config {config!r}. {suggest(config, configs)}")
    data_dir = data_folder(data_dir)
    root = cache_dir() / "tfds" / _origin(builder_class, data_dir)
    part = Path(name, *[config or c for c in configs[:1]], str(builder_class.VERSION))
    if not (root / part).is_dir():
        temporary = root / f"preparing-{uuid.uuid4().hex}"
        try:
            prepare(builder_class, temporary, config=config, data_dir=data_dir)
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another process was faster, and its folder is as good
                (temporary / part).rename(root / part)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root / part


def prepare(builder_class: Any, folder: Path, *, config: str | None = None, data_dir: Path | None = None) -> None:
    """Runs a TFDS builder into `folder`, quietly where nobody watches, and without TensorFlow."""
    import tensorflow_datasets as tfds

    raw = getattr(builder_class, "RAW", None)
    here = raw is not None and _place(raw, data_dir) is not None
    options = tfds.download.DownloadConfig(manual_dir=data_dir if here else None, try_download_gcs=False)
    folder.mkdir(parents=True)
    try:
        with quiet():
            builder = builder_class(data_dir=folder, config=config, file_format="array_record")
            builder.download_and_prepare(
                download_dir=cache_dir() / "downloads", download_config=options, file_format="array_record"
            )
    except UserError:
        raise
    except Exception as error:
        if raw is None or here:
            raise
        # What a failed download raises depends on the protocol: TFDS, requests and etils each have their own.
        raise UserError(
            f"The data set {builder_class.name!r} is neither in the data folder "
            f"({data_dir / raw.folder if data_dir else 'none is given'}) nor could it be downloaded from "
            f"{', '.join(raw.urls.values())}: {type(error).__name__}: {error}\n"
            f"{builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS} Name the data folder with --data_dir or TLJAX_DATA."
        ) from error


def _place(raw: Any, data_dir: Path | None) -> Path | None:
    from tljax.data.builders.raw import place_of

    return place_of(raw, data_dir)


def _origin(builder_class: Any, data_dir: Path | None) -> str:
    """Where the raw files come from, as a folder name."""
    if hasattr(builder_class, "PACKAGE"):
        return f"{builder_class.PACKAGE}-{version(builder_class.PACKAGE)}"
    place = _place(builder_class.RAW, data_dir)
    if place is None:
        return "publisher"
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    listing = "\n".join(f"{path.relative_to(place.parent)} {path.stat().st_size}" for path in files)
    return f"raw-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TFDS's progress bars and messages, only where someone watches."""
    from tensorflow_datasets.core.utils import tqdm_utils

    if sys.stderr.isatty():
        yield
        return
    tqdm_utils.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(True)
