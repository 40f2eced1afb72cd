"""What happens around steps: logging, evaluating, saving, stopping. Each is a function that returns a `Hook`."""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.base.errors import RunError, UserError
from tljax.base.processes import first, several
from tljax.base.tables import suggest
from tljax.train.joint import stop_together
from tljax.train.loop import Hook
from tljax.train.records import Records
from tljax.train.state import State

SPEED_WINDOW = 50
"""Steps over which steps a second are averaged; the first step, which compiles, starts the clock."""


def log(
    records: Records, *, every: int, schedule: Callable[[int], Any], show: Callable[..., None], folder: Path
) -> tuple[Hook, Callable[[], None]]:
    """Records the loss every `every` steps and stops the run at the first loss that is not finite.

    Metrics are read one step late: while the host waits for those of one step, the device is at work on the next.

    Args:
      records: where lines go.
      every: steps between records.
      schedule: step → learning rate.
      show: (step, loss, steps per second) → nothing; called for every step.
      folder: TensorBoard events are written here.

    Returns:
      (hook, function that reads all pending metrics now).
    """
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder), write_to_disk=first())
    pending: list[tuple[int, dict]] = []
    done: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)

    def read() -> None:
        if not pending:
            return
        step, metrics = pending.pop()
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is {loss} at step {step}. The checkpoints before it are intact; "
                "lower config.optim.learning_rate, set config.optim.clip, or look at the batch of that step."
            )
        done.append((step, time.monotonic()))
        rate = (step - done[0][0]) / max(done[-1][1] - done[0][1], 1e-9)
        show(step, loss, rate)
        if step % every == 0:
            values = jax.tree.map(float, metrics)
            # The schedule counts updates from 0: step n was made with the rate of n - 1.
            values.update(learning_rate=float(schedule(step - 1)), steps_per_second=rate)
            records.write("train", step=step, **values)
            for name in ("loss", "learning_rate", "gradient_norm"):
                writer.add_scalar(f"train/{name}", values[name], step)

    def after(step: int, state: State, metrics: dict) -> None:
        read()
        pending.append((step, metrics))

    def finish(step: int, state: State) -> None:
        read()
        writer.close()

    return Hook(after, finish), read


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
        if self.metric not in numbers:
            raise UserError(f"config.train.metric is {self.metric!r}. {suggest(self.metric, numbers)}")
        value = numbers[self.metric]
        sign = 1 if self.direction == "max" else -1
        if self.value is None or (np.isfinite(value) and sign * value > sign * self.value):
            self.value, self.step, self.numbers, self.waited = value, step, dict(numbers), 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

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
) -> Hook:
    """Evaluates on the validation split every `every` steps and at step `last`; keeps the best; stops when patient.

    Args:
      run: state → (numbers, tables).
      records: where lines go.
      best: renewed here.
      every: steps between evaluations.
      last: the final step, evaluated in any case.
      keep: (step, state) → nothing; called when the value is the best so far.
      say: prints one line.
    """

    def after(step: int, state: State, metrics: dict) -> str | None:
        if step % every and step != last:
            return None
        numbers, tables = run(state)
        records.evaluation(step, "validation", numbers, tables)
        say(f"step {step}: validation {best.metric} {numbers.get(best.metric, math.nan):.4f}")
        if best.update(step, numbers):
            keep(step, state)
        return f"no better {best.metric} for {best.waited} evaluations" if best.exhausted else None

    return Hook(after)


def save(write: Callable[[int, State], None], *, every: int, last: int, settle: Callable[[], None]) -> Hook:
    """Saves every `every` steps and at step `last`, never a state whose loss was not finite.

    Args:
      write: (step, state) → nothing; asynchronous.
      every: steps between checkpoints.
      last: the final step.
      settle: reads all pending metrics, and raises where one is not finite.
    """
    saved: list[int] = []

    def put(step: int, state: State) -> None:
        if saved[-1:] != [step]:
            settle()
            write(step, state)
            saved.append(step)

    def after(step: int, state: State, metrics: dict) -> None:
        if step % every == 0 or step == last:
            put(step, state)

    return Hook(after, put)


def stop_on_signals() -> tuple[Hook, Callable[[], int | None], Callable[[], None]]:
    """Ends the run after the present step on SIGINT or SIGTERM; a second signal ends it at once.

    Of several processes all end after the same step: see `tljax.train.joint`.

    Returns:
      (hook, signal number received or None, function that puts the former handlers back).
    """
    if several():
        return stop_together()
    received: list[int] = []
    former = {}

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        restore()  # the next signal does what it always does

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, handle)

    def after(step: int, state: State, metrics: dict) -> str | None:
        return f"stopped by {signal.Signals(received[0]).name}" if received else None

    return Hook(after), lambda: received[0] if received else None, restore
