"""Leaves that are partly their first values in each step."""

from collections.abc import Sequence

from tljax.base.errors import UserError
from tljax.base.types import Plan


def mixout(stages: Sequence[str], paths: Sequence[str], *, probability: float = 0.5) -> Plan:
    """In each step every number of the backbone's kernels is, with a chance, its first: dropout towards the start.

    Lee, Cho and Kang 2020, arXiv 1909.11299: w̃ = (m · w₀ + (1 − m) · w − p · w₀) / (1 − p), whose mean is w, which is
    what evaluations see.

    Args:
      stages: in depth order.
      paths: of all leaves; those called `kernel` or `embedding` are mixed.
      probability: p, from 0 up to, but not including, 1.

    Raises:
      UserError: a probability out of range.
    """
    if isinstance(probability, bool) or not isinstance(probability, (int, float)) or not 0 <= probability < 1:
        raise UserError(
            f"config.strategy.mixout.probability is {probability!r}; it must be from 0 up to, but not including, 1."
        )
    every = frozenset(paths)
    kernels = [p for p in paths if p.startswith("backbone/") and p.rpartition("/")[2] in ("kernel", "embedding")]
    return Plan(live=lambda step: every, mixed=dict.fromkeys(kernels, float(probability)) if probability else {})
