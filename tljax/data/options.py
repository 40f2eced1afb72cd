"""Processors are frozen dataclasses; this is how a config changes their fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest


def replaced(processor: Any, options: Mapping[str, Any], *, what: str) -> Any:
    """`processor` with other values in its public fields; lists (from JSON) become tuples.

    Raises:
      UserError: a name that is not a field, with the accepted ones; and what the processor itself refuses.
    """
    accepted = [f.name for f in dataclasses.fields(processor) if f.metadata.get("option", True)]
    raise_faults(
        f"The options of the {what} processor cannot be used:",
        [f"{name} is not one of them. {suggest(name, accepted)}" for name in options if name not in accepted],
    )
    return dataclasses.replace(processor, **{name: plain(value) for name, value in options.items()})


def plain(value: Any) -> Any:
    """Lists as tuples, so that equal options compare and hash equal; named tuples stay what they are."""
    if hasattr(value, "_fields"):
        return value
    return tuple(plain(x) for x in value) if isinstance(value, (list, tuple)) else value


def fixed(**keywords: Any) -> Any:
    """A dataclass field that a config may not change: a fact about the checkpoint."""
    return dataclasses.field(metadata={"option": False}, **keywords)
