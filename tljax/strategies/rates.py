"""Learning rates by rules over leaf paths."""

from collections.abc import Sequence

from tljax.base.errors import raise_faults
from tljax.base.paths import assign
from tljax.base.types import Plan


def rates(stages: Sequence[str], paths: Sequence[str], *, rules: Sequence[tuple[str, float]]) -> Plan:
    """Each leaf's learning rate is multiplied by the factor of the first rule that matches its path, or by 1.

    Args:
      stages: in depth order.
      paths: of all leaves.
      rules: pairs (regular expression over whole paths, factor from 0).

    Raises:
      UserError: malformed rules, or rules that match nothing or are shadowed, with near misses.
    """
    where = "config.strategy.rates.rules"
    pairs = [tuple(rule) if not isinstance(rule, str) else (rule,) for rule in rules]
    raise_faults(
        f"The rules of {where} cannot be read:",
        [
            f"{rule!r} is no pair (expression, factor from 0)."
            for rule in pairs
            if len(rule) != 2 or isinstance(rule[1], bool) or not isinstance(rule[1], (int, float)) or not rule[1] >= 0
        ],
    )
    factors = assign(pairs, paths, what=where, default=1.0)
    every = frozenset(paths)
    return Plan(live=lambda step: every, rates={path: float(x) for path, x in factors.items() if x != 1.0})
