"""What a person sees of a study: a table that is renewed on a terminal, plain lines elsewhere."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tljax.sweeps.axes import text_of
from tljax.sweeps.study import Row, Study

RENEWED = 2.0
"""Seconds between two looks at the database."""
SHOWN = 12
"""Trials that are shown of those that are finished: the best ones."""
STATES = ("complete", "pruned", "failed", "running", "waiting")


class Screen:
    """A live region of the screen. A class because it owns that. Everything goes to standard error."""

    def __init__(self, study: Study, console: Console | None = None):
        self.study, self.console = study, console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last = -RENEWED

    def say(self, line: str) -> None:
        """Prints one line, above the table."""
        (self._live.console if self._live else self.console).print(line, markup=False)

    @contextmanager
    def shown(self) -> Iterator["Screen"]:
        """The table stands on the terminal while the context is open, and is printed at its end."""
        if self.console.is_terminal:
            with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
                try:
                    yield self
                finally:
                    self._live = None
        else:
            yield self
        self.console.print(table(self.study.about, self.study.rows()))

    def renew(self) -> None:
        """Shows how the study stands, where it was not shown a moment ago."""
        if self._live is None or time.monotonic() - self._last < RENEWED:
            return
        self._last = time.monotonic()
        self._live.update(table(self.study.about, self.study.rows()), refresh=True)


def table(about: Mapping[str, Any], rows: Sequence[Row], *, now: float | None = None) -> Group:
    """How a study stands: how many trials are in each state, the best ones, those that run, those that failed.

    Args:
      about: study.json.
      rows: its trials.
      now: seconds since 1970; None is the present.
    """
    now = time.time() if now is None else now
    sign = 1 if about["mode"] == "max" else -1
    done = sorted((row for row in rows if row.state == "complete"), key=lambda row: -sign * row.value)
    shown = [*done[:SHOWN], *(row for row in rows if row.state in ("running", "failed"))]
    grid = Table(box=None, pad_edge=False)
    for name, justify in (("trial", "right"), ("settings", "left"), ("state", "left")):
        grid.add_column(name, justify=justify)
    grid.add_column(f"validation {about['metric']}", justify="right")
    grid.add_column("seconds", justify="right")
    for row in shown:
        settings = ", ".join(f"{name.rpartition('.')[2]}={text_of(value)}" for name, value in row.params.items())
        value = "" if row.value is None else f"{row.value:.4f}"
        seconds = "" if row.start is None else f"{(row.end or now) - row.start:.0f}"
        grid.add_row(str(row.number), settings, row.state, value, seconds)
    return Group(Text(summary(about, rows)), grid)


def summary(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One line: the states and their numbers, and how long the rest will take."""
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    left = seconds_left(rows)
    return f"{about['name']}: {len(rows)} trials: {states}" + ("" if left is None else f"; about {clock(left)} left")


def seconds_left(rows: Sequence[Row]) -> float | None:
    """How long the trials that wait and run will take, by the median of those that are complete.

    None where nothing is left, nothing runs, or nothing is complete.
    """
    took = [row.end - row.start for row in rows if row.state == "complete" and row.start and row.end]
    running = sum(row.state == "running" for row in rows)
    waiting = sum(row.state == "waiting" for row in rows)
    if not took or not running:
        return None
    return statistics.median(took) * (waiting / running + 0.5)


def clock(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
