"""Training from random values: the comparison that says whether the checkpoint helps."""

from collections.abc import Sequence

from tljax.base.types import Plan


def scratch(stages: Sequence[str], paths: Sequence[str]) -> Plan:
    """Every leaf starts from its initialiser instead of the checkpoint, and trains.

    He, Girshick and Dollár 2019 (Rethinking ImageNet Pre-training) on when this catches up with pretraining.
    """
    every = frozenset(paths)
    return Plan(live=lambda step: every, reset=every)
