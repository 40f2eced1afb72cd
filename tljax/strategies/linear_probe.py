"""Training the head on frozen features."""

from collections.abc import Sequence

from tljax.base.types import Plan
from tljax.strategies.stages import check_batch_stats, outside_backbone


def linear_probe(stages: Sequence[str], paths: Sequence[str], *, batch_stats: str = "auto") -> Plan:
    """Only the wings `head` and `method` train; the backbone is frozen and runs in inference mode.

    Alain and Bengio 2017; Kornblith, Shlens and Le 2019 on how it relates to fine-tuning.

    Args:
      stages: in depth order.
      paths: of all leaves.
      batch_stats: "auto" and "frozen" keep the running statistics; "train" lets them follow the new data.
    """
    live = outside_backbone(paths)
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("linear_probe", batch_stats))
