"""Training the biases."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan
from tljax.strategies.stages import check_batch_stats, outside_backbone


def bias_only(stages: Sequence[str], paths: Sequence[str], *, batch_stats: str = "auto") -> Plan:
    """The leaves of the backbone that are called `bias` train, and the wings `head` and `method`.

    Ben Zaken, Goldberg and Ravfogel 2022 (BitFit), arXiv 2106.10199. Biases of norms are among them.

    Args:
      stages: in depth order.
      paths: of all leaves.
      batch_stats: "auto" lets the running statistics of live stages move, "frozen" none, "train" all.

    Raises:
      UserError: the backbone has no biases (LLaMA's have none).
    """
    biases = frozenset(path for path in paths if path.startswith("backbone/") and path.endswith("/bias"))
    if not biases:
        raise UserError("config.strategy.bias_only: the backbone has no leaf called bias. Use norm_only or lora.")
    live = biases | outside_backbone(paths)
    return Plan(live=lambda step: live, batch_stats=check_batch_stats("bias_only", batch_stats))
