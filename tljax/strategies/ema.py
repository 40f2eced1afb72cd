"""An average of the weights over the steps."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan


def ema(stages: Sequence[str], paths: Sequence[str], *, decay: float = 0.999) -> Plan:
    """The exponential moving average of the live leaves is evaluated, chosen by, predicted with and exported.

    Polyak and Juditsky 1992; Tarvainen and Valpola 2017 for the exponential form. At step n, counted from 1, the
    average keeps min(`decay`, n / (n + 1)) of itself, so that it forgets the start. Running statistics are those of
    training.

    Args:
      stages: in depth order.
      paths: of all leaves.
      decay: the most that the average keeps of itself in a step, from 0 up to, but not including, 1.

    Raises:
      UserError: a decay out of range.
    """
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
        raise UserError(f"config.strategy.ema.decay is {decay!r}; it must be from 0 up to, but not including, 1.")
    every = frozenset(paths)
    return Plan(live=lambda step: every, average=float(decay))
