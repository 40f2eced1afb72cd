"""Learning rates that fall with depth."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan
from tljax.strategies.stages import by_stage, chosen_stages


def layer_decay(stages: Sequence[str], paths: Sequence[str], *, rate: float, with_head: Sequence[str] = ()) -> Plan:
    """A stage's learning rate is multiplied by rate^(its depth below the head): 1 for the head, `rate` for the top
    stage, and the least for the embeddings.

    Howard and Ruder 2018 (ULMFiT), Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT).

    Args:
      stages: in depth order; those without parameters do not count.
      paths: of all leaves.
      rate: above 0, at most 1.
      with_head: expressions over stage names; these stages have the head's factor 1 and no depth of their own, as
        the final norm in BEiT.

    Raises:
      UserError: a rate out of range, an expression that matches no stage.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise UserError(f"config.strategy.layer_decay.rate is {rate!r}; it must be above 0 and at most 1.")
    grouped = by_stage(stages, paths)
    apart = chosen_stages("layer_decay", "with_head", with_head, grouped)
    counted = [stage for stage in grouped if stage not in apart]
    rates = {path: float(rate) ** (len(counted) - i) for i, stage in enumerate(counted) for path in grouped[stage]}
    every = frozenset(paths)
    return Plan(live=lambda step: every, rates=rates)
