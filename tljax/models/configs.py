"""Reading config.json into a family's frozen config."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest


def read_config(
    cls: type, entries: Mapping[str, Any], *, what: str, accepted: Mapping[str, Collection[Any]] | None = None
) -> Any:
    """A `cls` (frozen dataclass) from the entries of a config.json; entries that it does not name are ignored.

    Args:
      cls: its fields have defaults, which say what type a value has; whole numbers are sizes, from 1. A field whose
        default is None takes any value.
      entries: config.json.
      what: the kind of model, for the message.
      accepted: entry → values that are implemented; an absent or null entry is accepted.

    Raises:
      UserError: all entries of a wrong type and all values that are not implemented.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    faults = [
        f"{name} is {entries[name]!r}, which is not implemented. {suggest(entries[name], values)}"
        for name, values in (accepted or {}).items()
        if entries.get(name) is not None and not _is_in(entries[name], values)
    ]
    given = {}
    for name, default in defaults.items():
        if name not in entries:
            continue
        value = tuple(entries[name]) if isinstance(entries[name], list) else entries[name]
        if (kind := _misfit(value, default)) is None:
            given[name] = value
        else:
            faults.append(f"{name} is {entries[name]!r}; it must be {kind}, such as {default!r}.")
    raise_faults(f"This config.json describes no {what} that can be built:", faults)
    return cls(**given)


def _is_in(value: Any, values: Collection[Any]) -> bool:
    return any(type(value) is type(v) and value == v for v in values)


def _misfit(value: Any, default: Any) -> str | None:
    """What `value` should be, to stand where `default` stands; None where it fits."""
    if default is None:
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return None if isinstance(value, str) else "a text"
    if isinstance(default, float):
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if isinstance(default, tuple):
        fits = isinstance(value, tuple) and value and all(_misfit(v, 1) is None for v in value)
        return None if fits else "a list of whole numbers from 1"
    return None if isinstance(value, int) and not isinstance(value, bool) and value > 0 else "a whole number from 1"


def pair(value: Any) -> Any:
    """A size as (height, width): 224 → (224, 224). What is neither a number nor a list is left to `read_config`."""
    return (value, value) if isinstance(value, int) else value
