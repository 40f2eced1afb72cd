"""Successive halving: many candidates for a short time, the best of them for a longer one, within a budget of time.

Jamieson and Talwalkar 2016, Non-stochastic best arm identification and hyperparameter optimization, arXiv 1502.07943.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Tried(NamedTuple):
    """What a candidate came to in a rung: its `value`, None where it failed, after `seconds`."""

    candidate: str
    value: float | None
    seconds: float


class Rung(NamedTuple):
    """Candidates that had the same number of `steps`, in the order in which they ran."""

    steps: int
    tried: tuple[Tried, ...]


def plan(count: int, steps: int, eta: int) -> list[tuple[int, int]]:
    """(candidates, steps) of each rung; the last one, of `steps`, has from 2 to `eta` candidates, or the only one."""
    sizes = [count]
    while sizes[-1] > eta:
        sizes.append(math.ceil(sizes[-1] / eta))
    last = len(sizes) - 1
    return [(size, max(1, round(steps / eta ** (last - i)))) for i, size in enumerate(sizes)]


def halve(
    candidates: Sequence[str],
    run: Callable[[str, int, int], float | None],
    *,
    steps: int,
    eta: int,
    budget: float,
    sign: int = 1,
    known: Sequence[Rung] = (),
    keep: Callable[[list[Rung]], Any] = lambda rungs: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Rung], str | None]:
    """Runs candidates in rungs; of each rung the best 1 / `eta` go on, from the start, with more steps.

    A rung that would take longer than what is left gets fewer steps, as the seconds of the one before tell; where that
    were no more than they had there, nothing more runs. In the first rung no run begins after the end of the budget. So
    the budget is kept but for the length of one run, or what a rung takes more than foreseen.

    Args:
      candidates: names; of equal values the earlier one goes on.
      run: (candidate, rung, steps) → its value, or None where it failed.
      steps: of the last rung.
      eta: from 2.
      budget: seconds from now.
      sign: −1 where lower values are better.
      known: rungs of an earlier call with the same arguments: what was tried there is not run again.
      keep: is given all rungs before each rung and after each run.
      clock: seconds.

    Returns:
      (rungs; why it ended early, or None).
    """
    end, rungs, going = clock() + budget, [], list(candidates)
    for number, (size, planned) in enumerate(plan(len(going), steps, eta)):
        going = _best(rungs[-1], going, size, sign) if rungs else going
        length = known[number].steps if number < len(known) else planned
        if rungs and number >= len(known):
            seconds = sum(each.seconds for each in rungs[-1].tried if each.candidate in going)
            length = _fitting(planned, rungs[-1].steps, seconds, end - clock())
            if length <= rungs[-1].steps:
                return rungs, f"the time that is left does not suffice for more than {rungs[-1].steps} steps"
        there = {each.candidate: each for each in known[number].tried} if number < len(known) else {}
        tried: list[Tried] = []
        keep([*rungs, Rung(length, ())])  # what is stopped in its first run goes on with as many steps
        for name in going:
            if name not in there and clock() >= end:
                left = len(going) - len(tried)
                return [*rungs, Rung(length, tuple(tried))], f"the time is over, and {left} of the rung did not run"
            tried.append(there.get(name) or _timed(name, number, length, run, clock))
            keep([*rungs, Rung(length, tuple(tried))])
        rungs.append(Rung(length, tuple(tried)))
        if not any(each.value is not None for each in tried):
            return rungs, "every run of the rung failed"
    return rungs, None


def winner(rungs: Sequence[Rung], sign: int = 1) -> Tried | None:
    """The best of the last rung in which something was measured; None where nothing was."""
    for rung in reversed(rungs):
        measured = [each for each in rung.tried if each.value is not None]
        if measured:
            return max(measured, key=lambda each: sign * each.value)
    return None


def _timed(
    name: str, number: int, steps: int, run: Callable[[str, int, int], float | None], clock: Callable[[], float]
) -> Tried:
    began = clock()
    value = run(name, number, steps)
    return Tried(name, value, clock() - began)


def _best(rung: Rung, order: Sequence[str], size: int, sign: int) -> list[str]:
    measured = [each for each in rung.tried if each.value is not None]
    measured.sort(key=lambda each: (-sign * each.value, order.index(each.candidate)))
    return [each.candidate for each in measured[:size]]


def _fitting(planned: int, before: int, seconds: float, left: float) -> int:
    """The steps for which the time that is left suffices: at most `planned`, at the speed of the rung before."""
    needed = seconds * planned / before
    return planned if needed <= left else int(planned * max(left, 0) / needed)
