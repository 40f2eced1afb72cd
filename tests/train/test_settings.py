"""The section `train`: how many steps a run has."""

import pytest

from tljax.base.errors import UserError
from tljax.train.settings import Settings


def test_steps_count_where_they_are_given():
    assert Settings(epochs=2).total_steps(100) == 7
    assert Settings(epochs=0.5).total_steps(100) == 2
    assert Settings().total_steps(100) == 4
    assert Settings(steps=5, epochs=2).total_steps(100) == 5
    assert Settings(epochs=2).evaluation_interval(100) == 4
    assert Settings(steps=300).evaluation_interval(10) == 6, "at most 50 in a run, however short its epochs are"
    assert Settings(steps=300).evaluation_interval(100) == 8, "whole epochs"
    assert Settings(eval_every=3).evaluation_interval(100) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(compute_dtype="float16"), "Accepted: bfloat16, float32"),
        (Settings(batch_size=10, accumulate=4), "not divisible by accumulate"),
        (Settings(log_every=0), "log_every is 0"),
        (Settings(cache=True), r"cache is True; it must be 'auto', 'off', or the name of a folder"),
        (Settings(cache="on"), "cache is 'on'"),
        (Settings(cache_dtype="float16"), r"cache_dtype is 'float16'"),
        (Settings(remat="blocks"), r"config\.train\.remat is 'blocks'\. Accepted: none, stages"),
        (Settings(remat=True), r"remat is True\. .*Accepted: none, stages"),
    ],
)
def test_values_that_do_not_fit_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        settings.check()
