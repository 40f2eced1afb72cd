"""One stage more at a time, from the top."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, check_batch_stats, check_time, leaves, outside_backbone


def gradual_unfreezing(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    every: float = 1,
    unit: str = "epochs",
    first: int = 0,
    batch_stats: str = "auto",
) -> Plan:
    """The head trains first; each `every` the next lower stage joins it. Howard and Ruder 2018 (ULMFiT), 1801.06146.

    Args:
      stages: in depth order; those without parameters do not count.
      paths: of all leaves.
      every: time between two stages; above 0.
      unit: of `every`: "epochs", "steps", or "run" (a fraction of it).
      first: upper stages that train from the start, with the wings `head` and `method`.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range.
    """
    check_time("gradual_unfreezing", every=every, unit=unit)
    grouped = by_stage(stages, paths)
    names = list(grouped)
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= len(names):
        raise UserError(
            f"config.strategy.gradual_unfreezing.first is {first!r}; it must be a whole number from 0 to {len(names)}, "
            f"the stages with parameters: {', '.join(names)}."
        )
    outside = outside_backbone(paths)
    sets = [outside | leaves(grouped, names[len(names) - n :]) for n in range(first, len(names) + 1)]
    times = [n * every for n in range(1, len(sets))]

    def live(time: float) -> frozenset[str]:
        return sets[sum(time >= each for each in times)]

    return Plan(
        live=live, changes=tuple(times), unit=unit, batch_stats=check_batch_stats("gradual_unfreezing", batch_stats)
    )
