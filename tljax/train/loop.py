"""The training loop; everything periodic is a hook."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tljax.base.processes import place_batch
from tljax.train.state import State


class Hook(NamedTuple):
    """Something that happens around steps.

    Attributes:
      after: (step, state, metrics) → a reason to stop the run, or None. `step` counts from 1; `metrics` are device
        arrays that may still be computing: whoever reads them waits.
      finish: (step, state) → nothing; called once after the last step, whatever the reason to stop.
      close: () → nothing; called once at the end, also where a step or a hook failed.
    """

    after: Callable[[int, State, dict], str | None] = lambda step, state, metrics: None
    finish: Callable[[int, State], None] = lambda step, state: None
    close: Callable[[], None] = lambda: None


def run_loop(
    step_fn: Callable,
    state: State,
    batches: Iterator[Any],
    *,
    start: int,
    steps: int,
    hooks: Iterable[Hook],
    before: Callable[[int, State], State] = lambda step, state: state,
    reason: str | None = None,
) -> tuple[State, int, str | None]:
    """Trains from step `start` to `steps`.

    Args:
      step_fn: (state, batches) → (state, metrics).
      state: after `start` steps; donated.
      batches: device-ready batches, the next one first.
      start: steps already done.
      steps: steps in all.
      hooks: in the order in which they run after each step.
      before: (steps done, state) → the state to take the next step from: a survey of the data, where one is due.
      reason: to take no step at all; None trains.

    Returns:
      (state, steps done, reason to have stopped early or None).
    """
    hooks, done = tuple(hooks), start
    try:
        while done < steps and reason is None:
            state, metrics = step_fn(before(done, state), next(batches))
            done += 1
            reasons = [hook.after(done, state, metrics) for hook in hooks]
            reason = next((r for r in reasons if r), None)
        for hook in hooks:
            hook.finish(done, state)
    finally:
        for hook in hooks:
            hook.close()
    return state, done, reason


def to_device(batches: Iterator[Any], sharding: Any, *, depth: int = 2) -> Iterator[Any]:
    """Batches placed on the devices `depth` ahead of their use, so that no step waits for a transfer.

    Of several processes each gives its rows, those of `tljax.base.processes.parts`.
    """
    queue: deque = deque()
    for batch in batches:
        queue.append(place_batch(batch, sharding))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue
