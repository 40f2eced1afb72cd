"""Training some stages, wherever they are."""

from collections.abc import Sequence

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, check_batch_stats, leaves, outside_backbone


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
      stages: names of stages.
      head: whether the wing `head` trains too; the paper freezes it where the head was trained before.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: a stage that does not exist, or has no parameters.
    """
    grouped = by_stage(names, paths)
    chosen = (stages,) if isinstance(stages, str) else tuple(stages)
    raise_faults(
        "The section config.strategy.surgical cannot be used:",
        [
            f"stages: there is no stage {name!r} with parameters. {suggest(name, grouped)}"
            for name in chosen
            if name not in grouped
        ],
    )
    outside = outside_backbone(paths)
    kept = outside if head else frozenset(path for path in outside if not path.startswith("head/"))
    live = leaves(grouped, chosen) | kept
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("surgical", batch_stats))
