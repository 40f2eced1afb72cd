"""Configs as nested plain dicts: their dotted keys, and the values behind these."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from tljax.base.errors import UserError

SECTIONS = ("seed", "model", "task", "method", "strategy", "optim", "train", "mesh", "data", "probe", "select")
"""What a config is made of."""
VARIED = ("seed", "optim.learning_rate", "optim.weight_decay")
"""What may differ between linear probes over the same stored features that train together."""


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets the dotted `key`. Sections on the way are made; whether the name exists is checked by who reads it."""
    *parents, name = key.split(".")
    node = config
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            place = ".".join(["config", *parents[: depth + 1]])
            raise UserError(f"--config.{key}: {place} is {node!r}, not a section.")
    node[name] = value


def keys_of(config: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of all values and sections."""
    for name, value in config.items():
        yield f"{before}{name}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{before}{name}.")


def flat_config(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{dotted key: value}; an empty section is a value, for `strategy.fine_tune` says something."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inside = isinstance(value, Mapping) and value
        found |= flat_config(value, f"{before}{name}.") if inside else {f"{before}{name}": value}
    return found


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what may differ between probes that train together; whether weights decay at all may not."""
    found = {**deepcopy(dict(config)), "decays": bool((config.get("optim") or {}).get("weight_decay"))}
    for key in VARIED:
        set_value(found, key, None)
    return found
