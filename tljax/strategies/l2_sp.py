"""A pull towards the checkpoint."""

from collections.abc import Sequence

from tljax.base.errors import raise_faults
from tljax.base.types import Plan


def l2_sp(stages: Sequence[str], paths: Sequence[str], *, strength: float = 0.1, head: float = 0.01) -> Plan:
    """The penalty strength / 2 · |w − w₀|² on the backbone's leaves, and head / 2 · |w − w₀|² on the head's.

    Li, Grandvalet and Davoine 2018, arXiv 1802.01483, whose second term has no w₀: a head that starts from zeros has
    that one. The penalty's gradient is added to the loss's before the optimizer and the clipping see it.

    Args:
      stages: in depth order.
      paths: of all leaves.
      strength: the paper's α, 0 or more.
      head: the paper's β, 0 or more.

    Raises:
      UserError: a negative strength.
    """
    raise_faults(
        "The section config.strategy.l2_sp cannot be used:",
        [
            f"{name} is {value!r}; it must be a number from 0."
            for name, value in (("strength", strength), ("head", head))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0
        ],
    )
    strengths = {"backbone": float(strength), "head": float(head)}
    pull = {path: strengths[path.split("/")[0]] for path in paths if path.split("/")[0] in strengths}
    every = frozenset(paths)
    return Plan(live=lambda step: every, pull={path: x for path, x in pull.items() if x})
