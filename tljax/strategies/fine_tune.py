"""Training everything, from the checkpoint."""

from collections.abc import Sequence

from tljax.base.types import Plan
from tljax.strategies.stages import check_batch_stats


def fine_tune(stages: Sequence[str], paths: Sequence[str], *, batch_stats: str = "auto") -> Plan:
    """Every leaf trains from the checkpoint's values. Girshick et al. 2014; Yosinski et al. 2014.

    Args:
      stages: in depth order.
      paths: of all leaves.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" keeps them all (and batch norms
        normalise by them), "train" moves them all.
    """
    every = frozenset(paths)
    return Plan(live=lambda step: every, batch_stats=check_batch_stats("fine_tune", batch_stats))
