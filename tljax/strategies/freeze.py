"""Freezing by rules over leaf paths and stage names."""

import re
from collections.abc import Iterable, Sequence

from tljax.base.errors import raise_faults
from tljax.base.paths import assign
from tljax.base.tables import suggest
from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, check_batch_stats

STATES = ("frozen", "live")
WHERE = "config.strategy.freeze.rules"


def freeze(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    rules: Sequence[str | tuple[str, str]],
    batch_stats: str = "auto",
) -> Plan:
    """Leaves train or not by ordered rules; what no rule speaks of trains.

    Args:
      stages: in depth order.
      paths: of all leaves.
      rules: expressions to freeze, or pairs (expression, "frozen" or "live"); the first that matches decides. An
        expression matches whole leaf paths (`backbone/block[0-3]/.*`) or whole stage names (`embed`, `block[0-3]`),
        and with these all their leaves.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: rules that match nothing or are shadowed by earlier ones, with near misses; malformed rules.
    """
    if isinstance(rules, str):
        rules = (rules,)
    ordered = [(rule, "frozen") if isinstance(rule, str) else tuple(rule) for rule in rules]
    faults = []
    for rule in ordered:
        if len(rule) != 2 or not all(isinstance(part, str) for part in rule):
            faults.append(f"{rule!r} is neither an expression nor a pair (expression, state).")
        elif rule[1] not in STATES:
            faults.append(f"{rule!r}: {rule[1]!r} is no state. {suggest(rule[1], STATES)}")
        elif _error(rule[0]):
            faults.append(f"{rule[0]!r} is not a regular expression: {_error(rule[0])}.")
    if not ordered:
        faults.append("there is no rule. To train everything, use fine_tune.")
    raise_faults(f"The rules of {WHERE} cannot be read:", faults)
    # Stage names stand first, so that a misspelt stage is answered with the nearest one.
    assign(ordered, [*stages, *paths], what=WHERE, default="live")
    named = by_stage(stages, paths)
    states = assign([(_with_stages(p, named), s) for p, s in ordered], paths, what=WHERE, default="live")
    live = frozenset(path for path, state in states.items() if state == "live")
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("freeze", batch_stats))


def _with_stages(pattern: str, stages: Iterable[str]) -> str:
    """`pattern`, and the leaves of the stages whose names it matches."""
    named = [re.escape(stage) for stage in stages if re.fullmatch(pattern, stage)]
    return f"{pattern}|backbone/(?:{'|'.join(named)})/.*" if named else pattern


def _error(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None
