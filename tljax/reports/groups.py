"""Runs that differ only in their seed are one group; groups are named by what tells them apart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.configs import flat_config
from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.reports.gather import Entry
from tljax.reports.words import setting

COMPARED = ("model", "task", "method", "strategy", "data")
"""Sections of a config whose differences are compared; what differs in others is chosen on validation."""

ABSENT = object()


class Group(NamedTuple):
    """Runs of one config with several seeds.

    Attributes:
      name: the shortest text that tells it from the other groups.
      settings: dotted config key → value, where groups differ; keys that its config lacks are not there.
      entries: its runs, by seed.
    """

    name: str
    settings: dict[str, Any]
    entries: list[Entry]


def make_groups(entries: Iterable[Entry]) -> list[Group]:
    """The groups, in the order in which their first runs come."""
    found: dict[str, list[Entry]] = {}
    flats: dict[str, dict[str, Any]] = {}
    for entry in entries:
        config = {key: value for key, value in entry.run.config.items() if key != "seed"}
        flat = {key: value for key, value in flat_config(config).items() if not key.startswith("train.wandb")}
        key = repr(sorted(flat.items()))
        flats[key] = flat
        found.setdefault(key, []).append(entry)
    different = differing(list(flats.values()))
    named = names(list(flats.values()), different)
    groups = []
    for (key, members), name in zip(found.items(), named, strict=True):
        settings = {k: flats[key][k] for k in different if k in flats[key]}
        groups.append(Group(name, settings, sorted(members, key=lambda entry: (entry.seed is None, entry.seed))))
    return groups


def differing(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all have with the same value, in the order of the configs."""
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if any(_value(flat, key) != _value(flats[0], key) for flat in flats)]


def names(flats: Sequence[Mapping[str, Any]], different: Sequence[str]) -> list[str]:
    """A name for each of several flat configs, of the keys in which they differ.

    Strategies are called by their names, other settings `key=value` with as much of the key as is needed. What follows
    from the rest (a rank that only LoRA has, and is always 8) is left out as long as the names stay different.
    """
    if len(flats) == 1:
        return [_strategy(flats[0]) or "the run"]
    short = shortened(different)
    # A key that only some have says nothing where they all have the same value: that they have it, others say too.
    telling = [key for key in different if len({repr(flat[key]) for flat in flats if key in flat}) > 1]
    for keys in (telling, different):
        keys = sorted(keys, key=_rank)
        if len({*(made := _called(flats, keys, short))}) < len(made):
            continue
        for key in reversed(keys):  # what follows from the rest goes, the least telling first
            fewer = [each for each in keys if each != key]
            if len({*_called(flats, fewer, short)}) == len(flats):
                keys = fewer
        return _called(flats, keys, short)
    return [f"{name} ({i})" for i, name in enumerate(made)]


def _called(flats: Sequence[Mapping[str, Any]], keys: Sequence[str], short: Mapping[str, str]) -> list[str]:
    strategies = {_strategy(flat) for flat in flats} if any(key.startswith("strategy.") for key in short) else ()
    made = []
    for flat in flats:
        parts = [_strategy(flat) or "no strategy"] if len(strategies) > 1 else []
        parts += [f"{short[key]}={setting(flat[key])}" for key in keys if key in flat and flat[key] != {}]
        made.append(", ".join(parts) or "as it is")
    return made


def _rank(key: str) -> tuple[int, bool]:
    """Where a setting stands in a name: strategy and model first, the learning rate before what follows from it."""
    section = key.partition(".")[0]
    order = ("strategy", "method", "model", "task", "data", "optim", "train")
    return order.index(section) if section in order else len(order), key != "optim.learning_rate"


def shortened(keys: Sequence[str]) -> dict[str, str]:
    """Dotted key → as few of its last parts as tell it from the others."""
    found = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
                break
        found[key] = end
    return found


def candidates(groups: Sequence[Group], by: Sequence[str] = ()) -> dict[str, list[Group]]:
    """What is compared: name → the groups that differ in nothing but what is chosen on validation, called by that.

    Args:
      groups: of `make_groups`.
      by: sections or dotted keys whose differences are compared; () takes `COMPARED`, or where groups do not differ
        there, every group by itself.

    Raises:
      UserError: groups do not differ in what `by` names.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    for name in by:
        if not any(_under(key, name) for key in keys):
            differ = sorted({*keys, *(key.partition(".")[0] for key in keys)})
            raise UserError(f"--by names {name!r}, in which the runs do not differ. {suggest(name, differ)}")
    compared = [key for key in keys if any(_under(key, name) for name in (by or COMPARED))]
    if not compared:
        return {group.name: [group] for group in groups}
    found: dict[str, list[Group]] = {}
    flats: dict[str, dict[str, Any]] = {}
    for group in groups:
        key = repr([(key, group.settings[key]) for key in compared if key in group.settings])
        found.setdefault(key, []).append(group)
        flats.setdefault(key, flat_config(group.entries[0].run.config))
    called = names(list(flats.values()), compared)
    return {name: _called_apart(members) for name, members in zip(called, found.values(), strict=True)}


def _called_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups with names that tell them from one another, and not from all others."""
    flats = [flat_config(group.entries[0].run.config) for group in groups]
    called = names(flats, differing(flats))
    return [group._replace(name=name) for group, name in zip(groups, called, strict=True)]


def _under(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _value(flat: Mapping[str, Any], key: str) -> Any:
    return flat.get(key, ABSENT)


def _strategy(flat: Mapping[str, Any]) -> str:
    """The names of the strategies of a flat config, "lora + layer_decay"; "" where it has none."""
    return " + ".join(dict.fromkeys(key.split(".")[1] for key in flat if key.startswith("strategy.")))
