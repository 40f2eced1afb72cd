"""Which stages of an experiment run in training mode, and which of them under one scan."""

from collections.abc import Iterable, Mapping
from typing import Any

from tljax.base.paths import flatten
from tljax.base.types import Model, Plan
from tljax.models.scan import stage_groups


def scanned(model: Model, variables: Mapping[str, Any], live: Iterable[str] = ()) -> Model:
    """`model` with groups of the stages that run: equal neighbours whose `live` leaves are the same ones."""
    stages = model.backbone.stages
    running = set(stages[: None if model.stop is None else stages.index(model.stop)])
    groups = stage_groups(model.backbone, variables, live)
    return model._replace(groups=tuple(group for group in groups if running.issuperset(group)))


def scan_notes(model: Model) -> tuple[str, ...]:
    """What is to be said where a scan was asked for and there is nothing to scan."""
    nothing = f"config.train.scan: no two neighbouring stages of the {model.family} are equal; each runs by itself."
    return () if model.groups else (nothing,)


def training_stages(plan: Plan, step: int, stages: tuple[str, ...], variables: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that run in training mode: those with a live leaf, unless the plan says otherwise of statistics."""
    live = plan.live(step)
    with_stats = {s for s in stages if any(p.startswith(f"backbone/{s}/") for p in flatten(variables["batch_stats"]))}
    training = [s for s in stages if any(p.startswith(f"backbone/{s}/") for p in live)]
    if plan.batch_stats == "frozen":
        training = [s for s in training if s not in with_stats]
    if plan.batch_stats == "train":
        training = [s for s in stages if s in training or s in with_stats]
    head = ("head",) if any(p.startswith("head/") for p in live) else ()
    return (*training, *head)
