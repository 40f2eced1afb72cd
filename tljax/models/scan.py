"""Equal neighbouring stages as one `lax.scan`: one program stands for all of them, so that it compiles once.

Outside of a tower each stage keeps its name and its leaves. Inside, the leaves of a group are stacked along a new first
axis, along which the scan runs. Losses, gradients and random numbers are those of the stages one by one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.paths import flatten
from tljax.models.keys import TURN, Turn

Group = tuple[str, ...]
"""The stages of a group, in depth order."""

COLLECTIONS = ("params", "batch_stats")


def stage_groups(backbone: nn.Module, variables: Mapping[str, Any], live: Iterable[str] = ()) -> tuple[Group, ...]:
    """The groups of two stages or more that can run under a scan, in depth order.

    Neighbours belong together whose modules are equal but for the name, whose leaves have the same paths, shapes and
    dtypes, and of which the same leaves are live. A stage that stands alone is in no group.

    Args:
      backbone: a `Tower`.
      variables: `params/backbone` and `batch_stats/backbone`, nested; shapes will do.
      live: paths of live leaves, `backbone/…`.
    """
    live, chain = frozenset(live), backbone.chain()
    leaves: dict[str, set] = {stage: set() for stage in chain}
    for kind in COLLECTIONS:
        for path, leaf in flatten(variables.get(kind, {}).get("backbone", {})).items():
            stage = next((s for s in _beginnings(path) if s in leaves), None)
            if stage is not None:
                moving = kind == "params" and f"backbone/{path}" in live
                leaves[stage].add((kind, path.removeprefix(stage), tuple(leaf.shape), str(leaf.dtype), moving))
    groups: list[list[str]] = []
    before = None
    for stage, make in chain.items():
        own = (stage.rpartition("/")[0], make(parent=None), leaves[stage])
        groups = [*groups[:-1], [*groups[-1], stage]] if own == before else [*groups, [stage]]
        before = own
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _beginnings(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def runs(names: Sequence[str], groups: Sequence[Group], train: Collection[str] = ()) -> list[Group]:
    """`names`, neighbouring stages, cut into those that run together: single ones, and the parts of groups.

    The stages of a group that are in training mode (`train`) and the others run apart.
    """
    of = {stage: group for group in groups for stage in group}
    return [tuple(run) for _, run in groupby(names, key=lambda stage: (of.get(stage, stage), stage in train))]


class Span(NamedTuple):
    """Equal stages that run together.

    Attributes:
      parent: the module whose children they are, while it runs.
      make: makes the module of any of them.
      stages: their names.
      train: whether they are in training mode.
    """

    parent: nn.Module
    make: Callable[..., nn.Module]
    stages: Group
    train: bool

    @property
    def moves(self) -> bool:
        """Whether running statistics are renewed."""
        return self.train and self.parent.is_mutable_collection("batch_stats")

    def leaves(self, first: int, last: int | None = None) -> dict[str, Any]:
        """Collection → leaves of the stages [first, last) on a new first axis; without `last` of the stage `first`."""
        stages = self.stages[first : first + 1 if last is None else last]
        found = [{kind: self.parent.get_variable(kind, _own(stage), {}) for kind in COLLECTIONS} for stage in stages]
        return found[0] if last is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def advance(self, leaves: Any, carry: Mapping[str, Any], index: Any, name: str | None = None) -> tuple[dict, dict]:
        """(the carry after the stage `index`, its running statistics if they are renewed)."""
        generators = self.parent.scope.rngs
        above = next((generator.suffix for generator in generators.values()), ())
        turn = Turn(
            keys={kind: generator.rng for kind, generator in generators.items()},
            paths=tuple((*above, _own(stage)) for stage in self.stages),
            index=index,
            drawn={},
        )
        run = flax.core.apply(
            lambda scope: self.make(name=name, parent=scope)(dict(carry), self.train),
            mutable=["batch_stats"] if self.moves else False,
            flags={TURN: turn},
        )
        if not self.moves:
            return run(leaves), {}
        carry, renewed = run(leaves)
        return carry, renewed.get("batch_stats", {})

    def keep(self, index: int, stats: Mapping[str, Any]) -> None:
        """Puts the renewed statistics of the stage `index` in their place."""
        if stats:
            self.parent.put_variable("batch_stats", _own(self.stages[index]), stats)


def _own(stage: str) -> str:
    """The name under the wing."""
    return stage.rpartition("/")[2]


def run_span(
    span: Span, carry: Mapping[str, Any], *, remat: bool, gates: Mapping[str, jax.Array], record: bool
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """(the carry after the stages, `hidden` after each that changes it, where `record` asks for it).

    A scan keeps the structure of its carry. So a stage that changes it (the first of a group may hand on what nobody
    below did) runs before the scan, and so do all where the carry holds what stages keep under their own names, such as
    a key-value cache. What no stage changes stays the same object, outside of the scan.
    """
    carry, recorded, done, end = dict(carry), {}, 0, len(span.stages)
    while done < end:
        by_name = any(isinstance(value, Mapping) for value in carry.values())
        passed, fits = (set(), False) if by_name else _handed_on(span, carry, done)
        factors = [gates.get(stage) for stage in span.stages[done:]]
        if any(each is not None for each in factors):
            passed -= {"hidden"}
        if fits and done + 1 < end:
            last, (new, hidden) = end, _scanned(span, carry, passed, done, factors, remat=remat, record=record)
        else:
            program = _program(span, passed, _own(span.stages[done]))
            new, stats = (jax.checkpoint(program) if remat else program)(span.leaves(done), carry, done, factors[0])
            span.keep(done, stats)
            last, hidden = done + 1, [new["hidden"]] if record and new.get("hidden") is not None else []
        recorded |= zip(span.stages[done:], hidden, strict=False)
        carry, done = {**{key: carry[key] for key in passed}, **new}, last
    return carry, recorded


def _handed_on(span: Span, carry: Mapping[str, Any], index: int) -> tuple[set[str], bool]:
    """(the keys that the stage hands on as they are, whether the rest has the structure and types of what went in)."""
    passed: set[str] = set()

    def run(leaves, carry):
        new, _ = span.advance(leaves, carry, index, _own(span.stages[index]))
        passed.update(key for key in new if key in carry and new[key] is carry[key])
        return {key: value for key, value in new.items() if key not in passed}

    new = jax.eval_shape(run, span.leaves(index), dict(carry))
    before = {key: value for key, value in carry.items() if key not in passed}
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    return passed, types(new) == types(before)


def _program(span: Span, passed: Collection[str], name: str | None = None) -> Callable:
    """(leaves, carry, index, factors on `hidden` or None) → (what the stage changes of the carry, statistics)."""

    def program(leaves, carry, index, factors):
        new, stats = span.advance(leaves, carry, index, name)
        if factors is not None:
            new = {**new, "hidden": gated(new["hidden"], factors)}
        return {key: value for key, value in new.items() if key not in passed}, stats

    return program


def _scanned(
    span: Span,
    carry: Mapping[str, Any],
    passed: Collection[str],
    done: int,
    factors: Sequence[Any],
    *,
    remat: bool,
    record: bool,
) -> tuple[dict[str, Any], Sequence[jax.Array]]:
    """(what the stages from `done` on change of the carry, `hidden` after each; none where it is not asked for)."""
    moving, end = {key: value for key, value in carry.items() if key not in passed}, len(span.stages)
    if not moving:
        return {}, ()
    # The two passes are two loops, which the compiler does not take for one.
    program = _program(span, passed)
    program = jax.checkpoint(program, prevent_cse=False) if remat else program
    gate = next((each for each in factors if each is not None), None)
    if gate is not None:
        factors = jnp.stack([jnp.ones_like(gate) if each is None else each for each in factors])

    def body(moving: dict[str, Any], turn: tuple) -> tuple[dict[str, Any], tuple]:
        leaves, index, factor = turn
        new, stats = program(leaves, {**carry, **moving}, index, factor)
        return new, (stats, new.get("hidden") if record else None)

    turns = (span.leaves(done, end), jnp.arange(done, end), None if gate is None else factors)
    new, (stats, hidden) = jax.lax.scan(body, moving, turns)
    for index in range(done, end):
        span.keep(index, jax.tree.map(lambda x, place=index - done: x[place], stats))
    return new, () if hidden is None else hidden


def gated(hidden: jax.Array, factors: jax.Array) -> jax.Array:
    """`hidden` (B, …, D) times `factors` (B, D), whatever stands between."""
    return hidden * factors.reshape(len(factors), *(1 for _ in hidden.shape[1:-1]), -1).astype(hidden.dtype)
