"""The head first, then everything, in one run."""

from collections.abc import Sequence

from tljax.base.types import Plan
from tljax.strategies.stages import check_batch_stats, check_time, outside_backbone


def lp_ft(
    stages: Sequence[str], paths: Sequence[str], *, probe: float = 0.5, unit: str = "run", batch_stats: str = "auto"
) -> Plan:
    """A linear probe, then fine-tuning from its head: a random head would distort the features while it learns.

    Kumar et al. 2022 (Fine-tuning can distort pretrained features), arXiv 2202.10054. One schedule of the learning rate
    goes through both phases; `config.optim.head_rate` lets the head learn fast in the first.

    Args:
      stages: in depth order.
      paths: of all leaves.
      probe: how long only the wings `head` and `method` train; above 0.
      unit: of `probe`: "run" (a fraction of it), "epochs" or "steps".
      batch_stats: "auto" lets the running statistics move in the second phase, "frozen" never, "train" always.
    """
    check_time("lp_ft", probe=probe, unit=unit)
    head, every = outside_backbone(paths), frozenset(paths)
    return Plan(
        live=lambda time: head if time < probe else every,
        changes=(probe,),
        unit=unit,
        batch_stats=check_batch_stats("lp_ft", batch_stats),
    )
