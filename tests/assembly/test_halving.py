"""Successive halving, with a clock that runs stand still beside."""

import pytest

from tljax.assembly.halving import halve, plan, winner

QUALITY = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6, "e": 0.2, "f": 0.8}


class Place:
    """Runs that take a second a step, and what they were asked for. A class because its clock goes on."""

    def __init__(self, failing: str = ""):
        self.now, self.asked, self.failing = 0.0, [], failing

    def clock(self) -> float:
        return self.now

    def run(self, name: str, rung: int, steps: int) -> float | None:
        self.now += steps
        self.asked.append((name, rung, steps))
        return None if name in self.failing else QUALITY[name]

    def halve(self, **options):
        given = {"steps": 90, "eta": 3, "budget": 1e9, "clock": self.clock, **options}
        return halve(list(QUALITY), self.run, **given)


def test_rungs_grow_by_eta_as_candidates_fall():
    assert plan(6, 90, 3) == [(6, 30), (2, 90)]
    assert plan(8, 80, 2) == [(8, 20), (4, 40), (2, 80)]
    assert plan(1, 10, 3) == [(1, 10)] and plan(9, 2, 3) == [(9, 1), (3, 2)]


def test_the_best_go_on_and_the_last_rung_has_all_steps():
    place = Place()
    rungs, ended = place.halve()
    assert place.asked == [(name, 0, 30) for name in QUALITY] + [("b", 1, 90), ("f", 1, 90)]
    assert ended is None and winner(rungs).candidate == "b"
    low, _ = Place().halve(sign=-1)
    assert [each.candidate for each in low[1].tried] == ["e", "a"] and winner(low, -1).candidate == "e"


def test_what_failed_does_not_go_on():
    rungs, _ = Place(failing="b").halve()
    assert [each.candidate for each in rungs[1].tried] == ["f", "c"]
    none, ended = Place(failing="abcdef").halve()
    assert len(none) == 1 and "failed" in ended and winner(none) is None


@pytest.mark.parametrize("budget", [100, 185, 200, 260, 330, 400])
def test_the_budget_is_kept(budget):
    place = Place()
    rungs, ended = place.halve(budget=budget)
    if budget < 180:  # the first rung takes that long
        assert len(rungs) == 1 and "time is over" in ended and place.now < budget + 30
    elif budget < 180 + 2 * 31:
        assert len(rungs) == 1 and "does not suffice" in ended
    else:
        assert rungs[1].steps == min(90, (budget - 180) // 2) and place.now <= budget and ended is None


def test_what_was_tried_before_is_not_run_again():
    whole, _ = Place().halve()
    kept = []
    Place().halve(keep=kept.append)
    for rungs in kept:
        place = Place()
        again, _ = place.halve(known=rungs)
        assert [[(x.candidate, x.value) for x in rung.tried] for rung in again] == [
            [(x.candidate, x.value) for x in rung.tried] for rung in whole
        ]
        assert len(place.asked) == 8 - sum(len(rung.tried) for rung in rungs)
