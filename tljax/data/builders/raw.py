"""Raw files of a data set: found in the user's folder or downloaded, read inside their archives, verified.

Archives are read member by member in memory: nothing is unpacked onto the disk, so no member can write anywhere.
"""

import gzip
import hashlib
import io
import lzma
import re
import socket
import tarfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from tljax.base.errors import UserError, raise_faults

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)


class Raw(NamedTuple):
    """Where the raw files of a data set are, and what they must be.

    Attributes:
      folder: under the user's data folder; a folder, or an archive of that name.
      wanted: regular expression of the files to read; a path that it matches is known by the expression's group 1.
      urls: file name → the publisher's address, for `folder` absent.
      digests: known name of a file → "sha256:…" or "md5:…" of its content, decompressed where it ends in .gz.
    """

    folder: str
    wanted: str
    urls: Mapping[str, str]
    digests: Mapping[str, str] = {}


def make_info(
    builder: Any, *, features: dict, description: str, homepage: str, licence: str, citation: str
) -> tfds.core.DatasetInfo:
    """TFDS's description of a data set whose records keep the publisher's order."""
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        description=description,
        homepage=homepage,
        license=licence,
        citation=citation,
        disable_shuffling=True,
    )


def place_of(raw: Raw, data_dir: Path | None) -> Path | None:
    """The folder or archive under `data_dir` that holds the raw files, or None."""
    if data_dir is None:
        return None
    candidates = [data_dir / raw.folder, *(data_dir / f"{raw.folder}{suffix}" for suffix in ARCHIVES)]
    return next((place for place in candidates if place.exists()), None)


def fetch(raw: Raw, download_manager: Any) -> dict[str, bytes]:
    """Known name → content of all raw files, from TFDS's `manual_dir` where they are there, else downloaded.

    Raises:
      UserError: a file is missing, broken, or not the published one.
    """
    try:
        place = place_of(raw, Path(download_manager.manual_dir))
    except AssertionError:  # TFDS: no such folder
        place = None
    if place is None:
        _reachable(raw.urls)
        places = [(name, Path(path)) for name, path in download_manager.download(dict(raw.urls)).items()]
    else:
        places = [("", place)]
    return read_files(raw, places)


def _reachable(urls: Mapping[str, str]) -> None:
    """Fails at once where there is no network: TFDS would try for minutes."""
    if not urllib.request.getproxies():
        for host in {urllib.parse.urlsplit(url).hostname for url in urls.values()}:
            socket.getaddrinfo(host, 443)


def read_files(raw: Raw, places: list[tuple[str, Path]]) -> dict[str, bytes]:
    """The files of `places` (name where the path does not tell, path) that `raw` wants, verified."""
    wanted, found = re.compile(raw.wanted), {}
    for name, place in places:
        for path, content in _contents(place, name or place.name, wanted):
            match = wanted.fullmatch(path)
            if match:
                found[match.group(1)] = content
    where = ", ".join(str(place) for _, place in places)
    faults = [f"{name} is missing." for name in raw.digests if name not in found]
    faults += [
        f"{name} is not the published file: its {kind} is {digest}, not {expected}."
        for name, content in found.items()
        if name in raw.digests
        for kind, expected in [raw.digests[name].split(":")]
        for digest in [hashlib.new(kind, content).hexdigest()]
        if digest != expected
    ]
    faults += ["There is no file of this data set."] * (not found)
    raise_faults(f"The raw files in {where} cannot be used:", faults)
    return found


def _contents(place: Path, name: str, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the wanted files at `place`: a folder, an archive or a file called `name`."""
    if place.is_dir():
        for path in sorted(p for p in place.rglob("*") if p.is_file()):
            yield from _contents(path, path.relative_to(place.parent).as_posix(), wanted)
        return
    try:
        if name.endswith(ARCHIVES[:-1]):
            # "r|*" only reads forward, so that a compressed archive is decompressed once.
            with tarfile.open(place, "r|*") as archive:
                for member in archive:
                    if member.isfile() and wanted.fullmatch(member.name):
                        yield member.name, _plain(member.name, archive.extractfile(member).read())
        elif name.endswith(".zip"):
            with zipfile.ZipFile(place) as archive:
                for member in archive.infolist():
                    if not member.is_dir() and wanted.fullmatch(member.filename):
                        yield member.filename, _plain(member.filename, archive.read(member))
        elif wanted.fullmatch(name):
            yield name, _plain(name, place.read_bytes())
    except BROKEN as error:
        raise UserError(f"{place} cannot be read: {error or type(error).__name__}. Is it complete?") from error


def _plain(name: str, content: bytes) -> bytes:
    return gzip.decompress(content) if name.endswith(".gz") else content


def png(pixels: Any) -> bytes:
    """A uint8 image, (H, W) or (H, W, 3), as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
