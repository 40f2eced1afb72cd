"""A backbone is a tower: a chain of named stages, each of which takes a carry (a dict of arrays) and returns one."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.models.layers import gradient_once
from tljax.models.scan import Group, Span, gated, run_span, runs


class Wing(nn.Module):
    """The stages of one tower of several: it puts the parameters of `encoder/block3` under encoder, block3."""

    @nn.compact
    def __call__(self, make: Callable[..., Any], name: str, carry: Mapping[str, Any], **options: bool) -> Any:
        return run_stage(make(name=name), carry, **options)


class Tower(nn.Module):
    """Base of all backbones. A family defines `chain`; this class runs any range of it.

    The parameters of a stage stand under its name, so that a range needs only its own part of the tree. A leaf that
    several stages read is the lowest one's, which hands it on in the carry.
    """

    def chain(self) -> Mapping[str, Any]:
        """Stage name → callable that makes the stage's module from `name=`, in depth order."""
        raise AttributeError(f"{type(self).__name__} must define chain()")

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in depth order."""
        return tuple(self.chain())

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        """The stages after which the reference reports a hidden state, in its order. Default: all of them."""
        return self.stages

    @property
    def shared(self) -> Mapping[str, tuple[str, ...]]:
        """Leaf path under the backbone → all that read it, the stage that owns it first. Default: none is shared."""
        return {}

    @nn.compact
    def __call__(
        self,
        carry: Mapping[str, Any],
        *,
        start: str | None = None,
        stop: str | None = None,
        train: tuple[str, ...] = (),
        record: bool = False,
        remat: bool = False,
        gates: Mapping[str, jax.Array] | None = None,
        groups: tuple[Group, ...] = (),
    ) -> dict[str, Any]:
        """Runs the stages of [start, stop).

        Args:
          carry: what the stage before `start` returned; the family's first carry for `start=None`.
          start: the first stage to run; None is the bottom.
          stop: the first stage not to run; None runs to the top.
          train: stages in training mode (dropout, batch statistics).
          record: keep `hidden` after each stage that changes it, in the carry's `recorded` (dict by stage name).
          remat: a gradient computes what is inside each stage again, and keeps in memory only what goes in.
          gates: stage → factors (B, D) on the channels of the `hidden` that it hands on.
          groups: of equal neighbouring stages, each to run under a scan; see `tljax.models.scan`.
        """
        carry, gates = dict(carry), gates or {}
        recorded = dict(carry.pop("recorded", {}))
        chain = self.chain()
        wings: dict[str, Wing] = {}
        # Leaves are made stage by stage.
        groups = () if self.is_initializing() else groups
        for run in runs(stage_range(tuple(chain), start, stop), groups, train):
            name, before = run[0], carry.get("hidden")
            wing, _, own = name.rpartition("/")
            if wing and wing not in wings:
                wings[wing] = Wing(name=wing)
            if len(run) > 1:
                span = Span(wings[wing] if wing else self, chain[name], run, name in train)
                carry, seen = run_span(span, carry, remat=remat, gates=gates, record=record)
                recorded |= seen
                continue
            options = {"train": name in train, "remat": remat}
            if wing:
                carry = wings[wing](chain[name], own, carry, **options)
            else:
                carry = run_stage(chain[name](name=name), carry, **options)
            # A stage of a wing without inputs hands the carry on, and has no hidden state of its own.
            changed = carry.get("hidden") is not None and carry["hidden"] is not before
            if changed:
                carry = {**carry, "hidden": gradient_once(carry["hidden"])}
            if name in gates:
                carry = {**carry, "hidden": gated(carry["hidden"], gates[name])}
            if record and changed:
                recorded[name] = carry["hidden"]
        return {**carry, "recorded": recorded} if record else carry


def run_stage(stage: nn.Module, carry: Mapping[str, Any], *, train: bool, remat: bool) -> dict[str, Any]:
    """The carry after `stage`; with `remat` a gradient keeps only what goes in, and runs the stage a second time."""
    if not remat:
        return stage(carry, train)
    passed: set[str] = set()

    def run(stage, carry):
        new = stage(carry, train)
        passed.update(key for key in new if key in carry and new[key] is carry[key])
        return {key: value for key, value in new.items() if key not in passed}

    # What a stage only hands on stays the same object, by which the tower knows that nothing was done to it.
    new = nn.remat(run)(stage, dict(carry))
    return {**{key: carry[key] for key in passed}, **new}


def with_map(carry: Mapping[str, Any], keep: bool = True) -> dict[str, Any]:
    """The carry with its `hidden`, a map, appended to `pyramid`; as it is without `keep`."""
    return {**carry, "pyramid": (*carry.get("pyramid", ()), carry["hidden"])} if keep else dict(carry)


def stage_range(stages: tuple[str, ...], start: str | None = None, stop: str | None = None) -> tuple[str, ...]:
    """The names in [start, stop); raises `UserError` for a name that is not a stage."""
    for name in (start, stop):
        if name is not None and name not in stages:
            raise UserError(f"There is no stage called {name!r}. {suggest(name, stages)}")
    first = 0 if start is None else stages.index(start)
    last = len(stages) if stop is None else stages.index(stop)
    return stages[first:last]
