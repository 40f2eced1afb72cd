"""Several strategies as one."""

import bisect
import math
from collections.abc import Mapping, Sequence

from tljax.base.errors import raise_faults
from tljax.base.types import Plan


def compose(plans: Mapping[str, Plan], paths: Sequence[str], lengths: Mapping[str, float] | None = None) -> Plan:
    """One plan of several: what is live intersects, rates multiply, resets unite, the stricter statistics hold.

    Args:
      plans: strategy name → its plan, in the order of the config; none at all trains everything.
      paths: of all leaves.
      lengths: unit of a plan → the steps that it has; None where nothing is trained, and every plan is at its end.

    Raises:
      UserError: nothing is live at the start; leaves are live and then frozen again; leaves start from random values
        and never train; one plan freezes the batch statistics and another trains them. Names the strategies.
    """
    every = frozenset(paths)
    plans = {name: in_steps(plan, lengths) for name, plan in plans.items()}
    changes = tuple(sorted({step for plan in plans.values() for step in plan.changes}))

    def live(step: int) -> frozenset[str]:
        return every.intersection(*(plan.live(step) for plan in plans.values()))

    rates = {path: math.prod(plan.rates.get(path, 1.0) for plan in plans.values()) for path in paths}
    reset = frozenset().union(*(plan.reset for plan in plans.values()))
    statistics = {name: plan.batch_stats for name, plan in plans.items() if plan.batch_stats != "auto"}
    sets = [live(step) for step in (0, *changes)]
    faults = [*_shrinking(plans), *_faults(plans, sets, reset, statistics)]
    raise_faults("config.strategy cannot be used:", faults)
    # Only the changes that are left when all plans are looked at together.
    changes = tuple(step for step, before, now in zip(changes, sets, sets[1:], strict=False) if before != now)
    return Plan(
        live=live,
        changes=changes,
        rates={path: rate for path, rate in rates.items() if rate != 1.0},
        reset=reset,
        batch_stats=next(iter(statistics.values()), "auto"),
    )


def in_steps(plan: Plan, lengths: Mapping[str, float] | None) -> Plan:
    """`plan` with its times in whole steps, rounded up; at its end from the start where there is no time."""
    times = (0, *plan.changes)
    if lengths is None:
        steps = [0] * len(times)
    else:
        # Rounded before it is rounded up: 0.1 · 30 is a little more than 3.
        steps = [math.ceil(round(time * lengths[plan.unit], 6)) for time in times]
    return plan._replace(
        live=lambda step: plan.live(times[bisect.bisect_right(steps, step) - 1]),
        changes=tuple(step for step in dict.fromkeys(steps) if step > 0),
        unit="steps",
    )


def _shrinking(plans: Mapping[str, Plan]) -> list[str]:
    faults = []
    for name, plan in plans.items():
        sets = [plan.live(step) for step in (0, *plan.changes)]
        for step, before, now in zip(plan.changes, sets, sets[1:], strict=False):
            if before - now:
                faults.append(
                    f"{name} freezes {len(before - now)} leaves at step {step} ({min(before - now)} …) that trained "
                    "before. A leaf that is live must stay live."
                )
    return faults


def _faults(
    plans: Mapping[str, Plan], sets: Sequence[frozenset[str]], reset: frozenset[str], statistics: Mapping[str, str]
) -> list[str]:
    """Args: the live leaves of each phase are `sets`; the last one has all that ever train."""
    faults = []
    if not sets[0]:
        faults.append(
            f"{_names(plans)} leave nothing to train{' at the start' if sets[-1] else ''}: no leaf is live in all of "
            "them. A task without parameters of its own (similarity) needs a live backbone."
        )
    stuck = reset - sets[-1]
    if stuck:
        resetting = [name for name, plan in plans.items() if plan.reset & stuck]
        freezing = [name for name, plan in plans.items() if stuck - plan.live(max((0, *plan.changes)))]
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
