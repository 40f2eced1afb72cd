"""The table of a study: what it counts, what it shows, how long it thinks the rest will take."""

from rich.console import Console

from tljax.sweeps.live import clock, seconds_left, summary, table
from tljax.sweeps.study import Row

ABOUT = {"name": "mine", "metric": "accuracy", "mode": "max"}


def row(number, state, value=None, start=None, end=None) -> Row:
    return Row(number, state, value, number, {"optim.learning_rate": 0.1 * number, "seed": 0}, start, end, None)


ROWS = [
    row(0, "complete", 0.5, 100, 110),
    row(1, "complete", 0.7, 100, 130),
    row(2, "failed", None, 110, 111),
    row(3, "running", None, 130),
    row(4, "running", None, 131),
    *(row(number, "waiting") for number in range(5, 9)),
]


def shown(rows, about=ABOUT) -> list[str]:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(about, rows, now=140))
    return captured.get().splitlines()


def test_states_are_counted_and_the_rest_is_timed():
    # The median trial takes 20 s; two run, on average half done, and each worker has two more.
    assert seconds_left(ROWS) == 20 * 2.5
    assert summary(ABOUT, ROWS) == "mine: 9 trials: 2 complete, 1 failed, 2 running, 4 waiting; about 50 s left"
    assert seconds_left(ROWS[:3]) is None and seconds_left(ROWS[3:]) is None
    assert [clock(x) for x in (40, 700, 12600)] == ["40 s", "12 min", "3.5 h"]


def test_the_best_stand_first_then_what_runs_and_what_failed():
    lines = shown(ROWS)
    assert [int(line.split()[0]) for line in lines[2:]] == [1, 0, 2, 3, 4]
    assert "learning_rate=0.1, seed=0" in lines[2] and "0.7000" in lines[2] and lines[2].split()[-1] == "30"
    assert lines[-1].split()[-1] == "9", "seconds so far"
    least = shown(ROWS, {**ABOUT, "mode": "min"})
    assert [int(line.split()[0]) for line in least[2:4]] == [0, 1]
