"""Training the norms."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan
from tljax.strategies.stages import check_batch_stats, outside_backbone


def norm_only(stages: Sequence[str], paths: Sequence[str], *, batch_stats: str = "auto") -> Plan:
    """The scales and shifts of the backbone's norms train, and the wings `head` and `method`.

    Frankle, Schwab and Morcos 2021 (Training BatchNorm and only BatchNorm), arXiv 2003.00152.

    Args:
      stages: in depth order.
      paths: of all leaves. A norm is what has a leaf called `scale`; its `bias` is its shift.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: the backbone has no norms.
    """
    norms = {path.rpartition("/")[0] for path in paths if path.startswith("backbone/") and path.endswith("/scale")}
    if not norms:
        raise UserError("config.strategy.norm_only: the backbone has no leaf called scale, so it has no norms.")
    live = frozenset(path for path in paths if path.rpartition("/")[0] in norms) | outside_backbone(paths)
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("norm_only", batch_stats))
