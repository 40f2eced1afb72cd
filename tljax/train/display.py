"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tljax.base.processes import first

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


class Display:
    """A progress bar with loss, steps a second and time left. A class because it owns a live region of the screen.

    Everything goes to standard error, so that standard output holds results only. Of several processes the first one
    speaks.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, quiet=not first())
        self._progress: Progress | None = None
        self._task = None
        self._last = 0.0
        self._total = 0

    def say(self, line: str) -> None:
        """Prints one line, above the bar if there is one."""
        (self._progress.console if self._progress else self.console).print(line, markup=False)

    @contextmanager
    def progress(self, start: int, total: int) -> Iterator[None]:
        """Shows progress from `start` to `total` steps while the context is open."""
        self._total, self._last = total, time.monotonic()
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            self._progress = progress
            self._task = progress.add_task("", total=total, completed=start, loss="–", rate="–")
            try:
                yield
            finally:
                self._progress = None

    def step(self, step: int, loss: float, rate: float) -> None:
        """Renews the bar; without a terminal, prints a line now and then."""
        if self._progress:
            self._progress.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{rate:.2f}")
        elif time.monotonic() - self._last > PLAIN_INTERVAL:
            self._last = time.monotonic()
            # The first step has no speed yet.
            left = f"  {rate:.2f} steps/s  {(self._total - step) / rate:.0f} s left" if rate > 0 else ""
            self.say(f"step {step}/{self._total}  loss {loss:.4f}{left}")

    def metrics(self, title: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """A closing table: one row a split, one column a metric."""
        names = list(dict.fromkeys(name for numbers in metrics.values() for name in numbers))
        table = Table(title=title, title_justify="left")
        table.add_column("split")
        for name in names:
            table.add_column(name, justify="right")
        for split, numbers in metrics.items():
            table.add_row(split, *(f"{numbers[name]:.4f}" if name in numbers else "" for name in names))
        self.console.print(table)
