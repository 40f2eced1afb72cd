"""What is best: the metric that is named, and the direction that goes with it."""

import math

import pytest

from tljax.base.choosing import chosen_by, lower_is_better, merit
from tljax.base.errors import UserError
from tljax.tasks import MAIN


@pytest.mark.parametrize(
    ("main", "metric", "found"),
    [
        (("accuracy", "max"), None, ("accuracy", "max")),
        (("perplexity", "min"), "token_accuracy", ("token_accuracy", "max")),
        (("spearman", "max"), "rmse", ("rmse", "min")),
        (("wer", "min"), "cer", ("cer", "min")),
        (("f1", "max"), "validation_loss", ("validation_loss", "min")),
        ((None, None), None, (None, None)),
    ],
)
def test_another_metric_than_the_tasks_has_its_own_direction(main, metric, found):
    assert chosen_by(main, metric) == found


@pytest.mark.parametrize(("metric", "direction"), sorted(set(MAIN.values())))
def test_the_names_of_the_tasks_metrics_tell_their_direction(metric, direction):
    assert lower_is_better(metric) == (direction == "min")


def test_merit_puts_what_is_not_finite_last_both_ways():
    values = [math.nan, math.inf, -math.inf, 2.0, 1.0]
    for direction, best in (("max", 2.0), ("min", 1.0)):
        assert max(values, key=lambda x, way=direction: merit("m", way, {"m": x})) == best
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        merit("acuracy", "max", {"accuracy": 1.0})
