"""Training the top of the tower."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, check_batch_stats, leaves, outside_backbone


def last_k(stages: Sequence[str], paths: Sequence[str], *, k: int, batch_stats: str = "auto") -> Plan:
    """The last `k` stages that hold parameters train, and the wings `head` and `method`. Yosinski et al. 2014.

    Args:
      stages: in depth order.
      paths: of all leaves.
      k: from 1 to the number of stages with parameters; a final norm or pooler that the task uses is one.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: `k` is out of range; names the stages.
    """
    grouped = by_stage(stages, paths)
    names = list(grouped)
    if not isinstance(k, int) or not 1 <= k <= len(names):
        raise UserError(
            f"config.strategy.last_k.k is {k!r}; it must be a whole number from 1 to {len(names)}, the stages with "
            f"parameters: {', '.join(names)}. For none of them, use linear_probe."
        )
    live = leaves(grouped, names[-k:]) | outside_backbone(paths)
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("last_k", batch_stats))
