"""Training some stages, wherever they are."""

from collections.abc import Sequence

from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, check_batch_stats, chosen_stages, leaves, outside_backbone


def surgical(
    names: Sequence[str],
    paths: Sequence[str],
    *,
    stages: Sequence[str],
    head: bool = True,
    batch_stats: str = "auto",
) -> Plan:
    """The named stages train: the first ones where the inputs look different, the last ones where the answers do.

    Lee et al. 2023 (Surgical fine-tuning improves adaptation to distribution shifts), arXiv 2210.11466.

    Args:
      names: of all stages, in depth order.
      paths: of all leaves.
      stages: expressions over stage names: `block0`, `block[0-3]`.
      head: whether the wing `head` trains too; the paper freezes it where the head was trained before.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: an expression that matches no stage with parameters.
    """
    grouped = by_stage(names, paths)
    outside = outside_backbone(paths)
    kept = outside if head else frozenset(path for path in outside if not path.startswith("head/"))
    live = leaves(grouped, chosen_stages("surgical", "stages", stages, grouped)) | kept
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("surgical", batch_stats))
