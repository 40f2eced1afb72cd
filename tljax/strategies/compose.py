"""Several strategies as one."""

import math
from collections.abc import Mapping, Sequence

from tljax.base.errors import raise_faults
from tljax.base.types import Plan


def compose(plans: Mapping[str, Plan], paths: Sequence[str]) -> Plan:
    """One plan of several: what is live intersects, rates multiply, resets unite, the stricter statistics hold.

    Args:
      plans: strategy name → its plan, in the order of the config; none at all trains everything.
      paths: of all leaves.

    Raises:
      UserError: nothing remains live; leaves start from random values and never train; one plan freezes the batch
        statistics and another trains them. Names the strategies.
    """
    every = frozenset(paths)

    def live(step: int) -> frozenset[str]:
        return every.intersection(*(plan.live(step) for plan in plans.values()))

    rates = {path: math.prod(plan.rates.get(path, 1.0) for plan in plans.values()) for path in paths}
    reset = frozenset().union(*(plan.reset for plan in plans.values()))
    statistics = {name: plan.batch_stats for name, plan in plans.items() if plan.batch_stats != "auto"}
    raise_faults("config.strategy cannot be used:", _faults(plans, live(0), reset, statistics))
    return Plan(
        live=live,
        rates={path: rate for path, rate in rates.items() if rate != 1.0},
        reset=reset,
        batch_stats=next(iter(statistics.values()), "auto"),
    )


def _faults(
    plans: Mapping[str, Plan], live: frozenset[str], reset: frozenset[str], statistics: Mapping[str, str]
) -> list[str]:
    faults = []
    if not live:
        faults.append(
            f"{_names(plans)} leave nothing to train: no leaf is live in all of them. A task without parameters "
            "of its own (similarity) needs a live backbone."
        )
    stuck = reset - live
    if stuck:
        resetting = [name for name, plan in plans.items() if plan.reset & stuck]
        freezing = [name for name, plan in plans.items() if stuck - plan.live(0)]
        faults.append(
            f"{_names(resetting)} gives {len(stuck)} leaves random values ({min(stuck)} …), and {_names(freezing)} "
            "freezes them there. Drop one of the two."
        )
    if len(set(statistics.values())) > 1:
        faults.append(
            "batch statistics cannot be both frozen and trained: "
            + ", ".join(f"{name} says {value!r}" for name, value in statistics.items())
            + "."
        )
    return faults


def _names(plans: Mapping[str, Plan] | Sequence[str]) -> str:
    return " with ".join(plans)
