"""Reading a config: a Python file with `get_config()`, or a run folder's config.json, and values set over it."""

import ast
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax.base.configs import set_value
from tljax.base.errors import UserError
from tljax.base.tables import suggest


def read_config(path: str | None, workdir: Path | None, overrides: Mapping[str, str]) -> dict[str, Any] | None:
    """The resolved config as nested plain dicts.

    Args:
      path: of a config file; None takes the one recorded in `workdir`, if there is one.
      workdir: a run folder.
      overrides: {dotted key: value as text}; a Python literal, or else a string.
    """
    if path is not None:
        config = load_config(Path(path))
    elif workdir is not None and (workdir / "config.json").exists():
        config = json.loads((workdir / "config.json").read_text(encoding="utf8"))["config"]
    else:
        if overrides:
            raise UserError(f"--config.{next(iter(overrides))} sets a value, but no --config=FILE is given.")
        return None
    for key, value in overrides.items():
        set_value(config, key, literal(value))
    return config


def load_config(path: Path) -> dict[str, Any]:
    """What `get_config()` of the file returns, as plain dicts; tuples become lists, as in JSON."""
    return _returned(path, "get_config")


def load_sweep(path: Path) -> dict[str, Any]:
    """What `sweep()` of a config file returns, in the same way."""
    return _returned(path, "sweep")


def _returned(path: Path, function: str) -> dict[str, Any]:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("configs")
        names = [str(p) for p in sorted(folder.glob("*.py"))]
        raise UserError(f"There is no config file {path}. {suggest(str(path), names)}")
    spec = importlib.util.spec_from_file_location(f"tljax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a config file defines {function}().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"The config file {path} cannot be read: {type(error).__name__}: {error}") from error
    if not hasattr(module, function):
        raise UserError(f"The config file {path} defines no {function}().")
    return _plain(getattr(module, function)())


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def literal(text: str) -> Any:
    """`text` as a Python literal (number, list, dict, True, None …), or itself."""
    try:
        return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text, text)
