"""Which leaves belong to which stage, and the options that several strategies share."""

import re
from collections.abc import Mapping, Sequence

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest

BATCH_STATS = ("auto", "frozen", "train")
UNITS = ("steps", "epochs", "run")


def by_stage(stages: Sequence[str], paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Stage name → its leaf paths, in depth order; stages without leaves are left out."""
    found = {stage: tuple(p for p in paths if p.startswith(f"backbone/{stage}/")) for stage in stages}
    return {stage: mine for stage, mine in found.items() if mine}


def outside_backbone(paths: Sequence[str]) -> frozenset[str]:
    """The leaves of the wings `head` and `method`."""
    return frozenset(path for path in paths if not path.startswith("backbone/"))


def leaves(grouped: Mapping[str, Sequence[str]], stages: Sequence[str]) -> frozenset[str]:
    """All leaves of `stages`."""
    return frozenset(path for stage in stages for path in grouped[stage])


def chosen_stages(
    strategy: str, option: str, patterns: str | Sequence[str], grouped: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The stages with parameters whose whole names match one of `patterns`, in depth order.

    Raises:
      UserError: an expression that matches none, with the nearest name.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    raise_faults(
        f"The section config.strategy.{strategy} cannot be used:",
        [
            f"{option}: {pattern!r} matches no stage with parameters. {suggest(pattern, grouped)}"
            for pattern in patterns
            if not any(re.fullmatch(pattern, stage) for stage in grouped)
        ],
    )
    return tuple(stage for stage in grouped if any(re.fullmatch(pattern, stage) for pattern in patterns))


def check_batch_stats(strategy: str, value: str) -> str:
    """`value`, if it is a choice for `Plan.batch_stats`; else a `UserError`."""
    if value not in BATCH_STATS:
        raise UserError(f"config.strategy.{strategy}.batch_stats is {value!r}. {suggest(value, BATCH_STATS)}")
    return value


def check_time(strategy: str, *, unit: str, **times: float) -> None:
    """Refuses a unit that is none of `UNITS`, and times that are not above 0."""
    faults = [] if unit in UNITS else [f"unit is {unit!r}. {suggest(unit, UNITS)}"]
    faults += [
        f"{name} is {time!r}; it must be a number above 0."
        for name, time in times.items()
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not time > 0
    ]
    raise_faults(f"The section config.strategy.{strategy} cannot be used:", faults)
