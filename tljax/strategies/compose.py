"""Several strategies as one."""

import bisect
import math
from collections.abc import Mapping, Sequence

from tljax.base.errors import raise_faults
from tljax.base.paths import sibling
from tljax.base.types import Adapter, Plan, Quantization


def compose(plans: Mapping[str, Plan], paths: Sequence[str], lengths: Mapping[str, float] | None = None) -> Plan:
    """One plan of several: what is live intersects, rates multiply, resets unite, the stricter statistics hold.

    Args:
      plans: strategy name → its plan, in the order of the config; none at all trains everything.
      paths: of all leaves.
      lengths: unit of a plan → the steps that it has; None where nothing is trained, and every plan is at its end.

    Raises:
      UserError: nothing is live at the start; leaves are live and then frozen again; leaves start from random values
        and never train; leaves that are held in few bits do train; one plan freezes the batch statistics and another
        trains them. Names the strategies.
    """
    every = frozenset(paths)
    plans = {name: in_steps(plan, lengths) for name, plan in plans.items()}
    changes = tuple(sorted({step for plan in plans.values() for step in plan.changes}))

    adapters, faults = _adapters(plans, every, changes)

    def live(step: int) -> frozenset[str]:
        beside = (
            p for kernel in adapters.keys() & _free(plans, every, step) for p in trained(kernel, adapters[kernel])
        )
        return every.intersection(*(plan.live(step) for plan in plans.values())).union(beside)

    rates = {path: math.prod(plan.rates.get(path, 1.0) for plan in plans.values()) for path in paths}
    rates |= {
        path: rates[kernel] * factor
        for kernel, mine in adapters.items()
        for path, factor in trained(kernel, mine).items()
    }
    reset = frozenset().union(*(plan.reset for plan in plans.values()))
    statistics = {name: plan.batch_stats for name, plan in plans.items() if plan.batch_stats != "auto"}
    sets = [live(step) for step in (0, *changes)]
    quantized, unfit = _quantized(plans, sets[-1])
    faults += [*_shrinking(plans), *_faults(plans, sets, reset, statistics), *unfit]
    raise_faults("config.strategy cannot be used:", faults)
    # Only the changes that are left when all plans are looked at together.
    changes = tuple(step for step, before, now in zip(changes, sets, sets[1:], strict=False) if before != now)
    return Plan(
        live=live,
        changes=changes,
        rates={path: rate for path, rate in rates.items() if rate != 1.0},
        reset=reset,
        batch_stats=next(iter(statistics.values()), "auto"),
        pull={path: sum(p.pull.get(path, 0.0) for p in plans.values()) for path in paths if _any(plans, "pull", path)},
        mixed={
            path: max(p.mixed.get(path, 0.0) for p in plans.values()) for path in paths if _any(plans, "mixed", path)
        },
        average=next((plan.average for plan in plans.values() if plan.average is not None), None),
        adapters=adapters,
        quantized=quantized,
    )


def trained(kernel: str, adapters: Sequence[Adapter]) -> dict[str, float]:
    """Path of each leaf beside `kernel` that trains → its own learning-rate factor."""
    return {
        sibling(kernel, leaf): adapter.rates.get(leaf, 1.0)
        for adapter in adapters
        for leaf in adapter.leaves
        if leaf not in adapter.frozen
    }


def _free(plans: Mapping[str, Plan], every: frozenset[str], step: float) -> frozenset[str]:
    """What is live at a step in all plans but those of adapters, which freeze what their adapters stand beside."""
    return every.intersection(*(plan.live(step) for plan in plans.values() if not plan.adapters))


def _adapters(
    plans: Mapping[str, Plan], every: frozenset[str], changes: Sequence[float]
) -> tuple[dict[str, tuple[Adapter, ...]], list[str]]:
    """(path of a kernel → its adapters, faults)."""
    free, found, faults = _free(plans, every, max((0, *changes))), {}, []
    for name, plan in plans.items():
        kept = plan.adapters.keys() & free
        if plan.adapters and not kept:
            freezing = [other for other, p in plans.items() if not p.adapters]
            faults.append(
                f"{_names(freezing)} keeps all {len(plan.adapters)} kernels frozen that {name} has adapters for "
                f"({min(plan.adapters)} …), so there is nothing to adapt. Drop one of the two."
            )
        for kernel in (kernel for kernel in plan.adapters if kernel in kept):
            twice = {a.name for a in found.get(kernel, ())} & {a.name for a in plan.adapters[kernel]}
            if twice:
                faults.append(f"{name} puts a second {min(twice)} beside {kernel}; a kernel has one of each kind.")
            found[kernel] = (*found.get(kernel, ()), *plan.adapters[kernel])
    return found, faults


def _quantized(plans: Mapping[str, Plan], ever: frozenset[str]) -> tuple[dict[str, Quantization], list[str]]:
    """(path of a kernel → how it is held, faults); `ever` is what trains at any time."""
    found, faults = {}, []
    for name, plan in plans.items():
        moving = [path for path, how in plan.quantized.items() if path in ever and how.named]
        kept = {path: how for path, how in plan.quantized.items() if path not in ever}
        if moving or (plan.quantized and not kept):
            moving, others = moving or list(plan.quantized), [other for other, p in plans.items() if not p.quantized]
            faults.append(
                f"{name} holds {len(moving)} kernels in few bits ({moving[0]} …) that train with "
                f"{_names(others) or 'no strategy that freezes them'}, and only what never trains can be held so. "
                f"Freeze them, as lora does, or leave them out of config.strategy.{name}.targets."
            )
        found |= kept
    return found, faults


def _any(plans: Mapping[str, Plan], field: str, path: str) -> bool:
    return any(path in getattr(plan, field) for plan in plans.values())


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
    averaging = [name for name, plan in plans.items() if plan.average is not None]
    if len(averaging) > 1:
        faults.append(f"{_names(averaging)} each keep an average of the leaves. Drop all but one.")
    if len(set(statistics.values())) > 1:
        faults.append(
            "batch statistics cannot be both frozen and trained: "
            + ", ".join(f"{name} says {value!r}" for name, value in statistics.items())
            + "."
        )
    return faults


def _names(plans: Mapping[str, Plan] | Sequence[str]) -> str:
    return " with ".join(plans)
