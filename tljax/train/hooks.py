"""What happens around steps: logging, evaluating, saving, stopping. Each is a function that returns a `Hook`."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax

from tljax.base.choosing import merit
from tljax.train.divergence import IN_A_ROW, Diverged, finite
from tljax.train.loop import Hook
from tljax.train.records import Records
from tljax.train.scalars import NOWHERE, Scalars
from tljax.train.state import State
from tljax.train.stopping import Interrupted, Stop

SPEED_WINDOW = 50
"""Steps over which steps a second are averaged; the first step, which compiles, starts the clock."""


def log(
    records: Records,
    *,
    every: int,
    schedule: Callable[[int], Any],
    show: Callable[..., None],
    scalars: Scalars,
) -> tuple[Hook, Callable[[], None]]:
    """Records the loss every `every` steps; stops the run where a step is not finite, or records that it was skipped.

    Metrics are read one step late: while the host waits for those of one step, the device is at work on the next.

    Args:
      records: where lines go.
      every: steps between records.
      schedule: step → learning rate.
      show: (step, loss, steps per second) → nothing; called for every step.
      scalars: where the run can be watched; closed at its end.

    Returns:
      (hook, function that reads all pending metrics now, and hands over what `scalars` was given).
    """
    pending: list[tuple[int, dict]] = []
    done: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)

    def read() -> None:
        if not pending:
            return
        step, metrics = pending.pop()
        fine = finite(metrics)
        if not fine:
            _not_finite(step, metrics, records)
        done.append((step, time.monotonic()))
        rate = (step - done[0][0]) / max(done[-1][1] - done[0][1], 1e-9)
        show(step, float(metrics["loss"]), rate)
        if fine and step % every == 0:
            values = jax.tree.map(float, metrics)
            # The schedule counts updates from 0: step n was made with the rate of n - 1.
            values.update(learning_rate=float(schedule(step - 1)), steps_per_second=rate)
            records.write("train", step=step, **values)
            scalars.write(step, {f"train/{name}": values[name] for name in ("loss", "learning_rate", "gradient_norm")})

    def after(step: int, state: State, metrics: dict) -> None:
        read()
        pending.append((step, metrics))

    def settle() -> None:
        read()
        scalars.flush()

    return Hook(after, lambda step, state: read(), scalars.close), settle


def _not_finite(step: int, metrics: Mapping[str, Any], records: Records) -> None:
    """Records a step that was skipped; raises `Diverged` where steps are not, or too many were, one after another."""
    what = "loss" if not math.isfinite(float(metrics["loss"])) else "gradient_norm"
    found = f"The {what.replace('_', ' ')} is {float(metrics[what])} at step {step}"
    cure = "lower config.optim.learning_rate, set config.optim.clip, or look at the batch of that step."
    skipped = metrics.get("skipped")
    if skipped is None:
        raise Diverged(step, metrics, f"{found}. The checkpoints before it are intact; {cure}")
    total, in_a_row = (int(skipped[name]) for name in ("total", "in_a_row"))
    records.write("skipped", step=step, what=what, total=total)
    if in_a_row >= IN_A_ROW:
        raise Diverged(step, metrics, f"{found}, and {in_a_row} steps one after another were skipped; {cure}")


class Best:
    """The best value of the metric that chooses, and how long ago it was. Part of every checkpoint."""

    def __init__(self, metric: str, direction: str, patience: int | None):
        self.metric, self.direction, self.patience = metric, direction, patience
        self.value: float | None = None
        self.step: int | None = None
        self.numbers: dict[str, float] = {}
        self.waited = 0

    def update(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Whether the value at `step` is the best so far."""
        now = merit(self.metric, self.direction, numbers)
        if self.value is None or now > merit(self.metric, self.direction, self.numbers):
            self.value, self.step, self.numbers, self.waited = numbers[self.metric], step, dict(numbers), 0
            return True
        self.waited += 1
        return False

    @property
    def reason(self) -> str | None:
        """Why the run stops, where patience has run out; else None."""
        exhausted = self.patience is not None and self.waited >= self.patience
        return f"no better {self.metric} for {self.waited} evaluations" if exhausted else None

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint and the records."""
        return {name: getattr(self, name) for name in ("metric", "value", "step", "numbers", "waited")}

    def load(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `as_dict`."""
        for name in ("value", "step", "numbers", "waited"):
            setattr(self, name, saved[name])


def evaluate(
    run: Callable[[State], tuple[dict[str, float], dict[str, Any]]],
    records: Records,
    best: Best,
    *,
    every: int,
    last: int,
    keep: Callable[[int, State], None],
    say: Callable[[str], None],
    settle: Callable[[], None],
    stop: Stop,
    due: list[int],
    scalars: Scalars = NOWHERE,
) -> Hook:
    """Evaluates on the validation split every `every` steps and at step `last`; keeps the best; stops when patient.

    A signal breaks an evaluation off: it may take longer than a machine that is taken away grants. It is then due when
    the run goes on.

    Args:
      run: state → (numbers, tables).
      records: where lines go.
      best: renewed here.
      every: steps between evaluations.
      last: the final step, evaluated in any case.
      keep: (step, state) → nothing; called when the value is the best so far.
      say: prints one line.
      settle: reads all pending metrics, whose records come before those of the evaluation.
      stop: breaks off.
      due: is given the step of an evaluation that was broken off.
      scalars: where the run can be watched.
    """

    def after(step: int, state: State, metrics: dict) -> str | None:
        if step % every and step != last:
            return None
        settle()
        try:
            with stop.interruptible():
                numbers, tables = run(state)
        except Interrupted:
            due.append(step)
            return stop.reason
        records.evaluation(step, "validation", numbers, tables)
        scalars.write(step, {f"validation/{name}": value for name, value in numbers.items()})
        say(f"step {step}: validation {best.metric} {numbers.get(best.metric, math.nan):.4f}")
        if best.update(step, numbers):
            keep(step, state)
        return best.reason

    return Hook(after)


def save(
    write: Callable[[int, State], None],
    *,
    every: int,
    last: int,
    settle: Callable[[], None],
    saved: int | None = None,
) -> Hook:
    """Saves every `every` steps and at step `last`, never a state whose loss was not finite.

    Args:
      write: (step, state) → nothing; asynchronous.
      every: steps between checkpoints.
      last: the final step.
      settle: reads all pending metrics, and raises where one is not finite.
      saved: the step that stands in the newest checkpoint.
    """

    def put(step: int, state: State) -> None:
        nonlocal saved
        if saved != step:
            settle()
            write(step, state)
            saved = step

    def after(step: int, state: State, metrics: dict) -> None:
        if step % every == 0 or step == last:
            put(step, state)

    return Hook(after, put)
