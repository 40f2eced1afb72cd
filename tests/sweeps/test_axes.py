"""What `sweep()` may say: every combination of a grid once, sampled studies in turn, faults that name the culprit."""

import itertools

import pytest

from tljax.base.errors import UserError
from tljax.sweeps.axes import points, read_sweep, sampled_axes, text_of, values_of

CONFIG = {
    "seed": 0,
    "strategy": {"fine_tune": {}},
    "optim": {"learning_rate": 1e-3, "weight_decay": 0.0},
    "data": {"train": {"source": "a"}, "validation": {"source": "a"}},
}
RATE, DECAY = "optim.learning_rate", "optim.weight_decay"
WAYS = [{"linear_probe": {}}, {"lora": {"rank": 8}}]


def values(given: dict) -> list[dict]:
    sweep = read_sweep(given, CONFIG)
    return [values_of(sweep, point) for point in points(sweep)]


def test_a_grid_is_every_combination_once_and_each_has_its_first_seed_before_any_has_two():
    found = values({"grid": {"strategy": WAYS, RATE: [1e-4, 1e-3]}, "seeds": 2})
    expected = [
        {"seed": seed, "strategy": way, RATE: rate} for seed, way, rate in itertools.product((0, 1), WAYS, (1e-4, 1e-3))
    ]
    assert found == expected


def test_settings_that_belong_together_are_one_axis():
    joint = [{"name": "small", RATE: 1e-4, DECAY: 0.1}, {RATE: 1e-3, "strategy": {"lora": {"rank": 8}}}]
    assert values({"joint": joint, "seeds": [5]}) == [
        {"seed": 5, RATE: 1e-4, DECAY: 0.1},
        {"seed": 5, RATE: 1e-3, "strategy": {"lora": {"rank": 8}}},
    ]
    labels = [point["joint"] for point in points(read_sweep({"joint": joint}, CONFIG))]
    assert labels == ["small", "optim.learning_rate=0.001, strategy(lora(rank=8))"]


def test_in_a_sampled_study_the_grid_takes_turns():
    given = {"grid": {"strategy": WAYS}, "log_uniform": {RATE: [1e-5, 1e-2]}, "trials": 5, "seeds": 1}
    sweep = read_sweep(given, CONFIG)
    assert [point["strategy"] for point in points(sweep)] == ["linear_probe", "lora(rank=8)"] * 2 + ["linear_probe"]
    (axis,) = sampled_axes(sweep)
    assert (axis.name, axis.low, axis.high, axis.log) == (RATE, 1e-5, 1e-2, True)
    assert values_of(sweep, {**points(sweep)[1], RATE: 0.002}) == {"seed": 0, "strategy": WAYS[1], RATE: 0.002}


def test_settings_in_few_words():
    assert text_of({"fine_tune": {}, "layer_decay": {"rate": 0.8}}) == "fine_tune, layer_decay(rate=0.8)"
    assert text_of([1e-4, True, None, "a"]) == "[0.0001, True, None, a]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grd": {}}, r"sweep\(\).grd is not an option of Sweep. Did you mean 'grid'"),
        ({}, "there is no axis"),
        ({"grid": {"optim.learning_rat": [1]}}, "no key of the config.*Did you mean 'optim.learning_rate'"),
        ({"grid": {RATE: 0.1}}, "optim.learning_rate is 0.1; it must be a list of values"),
        ({"grid": {RATE: []}}, "it must be a list of values"),
        ({"grid": {RATE: [1e-3, 0.001]}}, "settings that are equal"),
        ({"grid": {"strategy": [object()]}}, "no plain data"),
        ({"grid": {"seed": [0]}, "seeds": 2}, "'seed' and 'seed' set the same value; say in `joint`"),
        ({"grid": {"strategy": WAYS, "strategy.fine_tune": [{}]}}, "set the same value"),
        ({"seeds": True}, "seeds is True; it must be a number of seeds"),
        ({"uniform": {RATE: [1, 0]}, "trials": 2}, "two numbers, the lower one first"),
        ({"log_uniform": {RATE: [0, 1]}, "trials": 2}, "a logarithm needs numbers above 0"),
        ({"uniform": {RATE: [0, 1]}}, "it must say how many trials there are"),
        ({"uniform": {RATE: [0, 1]}, "trials": 2, "sampler": "grid"}, "name 'tpe' or 'random'"),
        ({"seeds": 2, "trials": 2}, "nothing is sampled"),
        ({"seeds": 2, "sampler": "tpe"}, "there is nothing to sample"),
        ({"seeds": 2, "metric": "test/accuracy"}, "compared on validation. To choose on other data is refused"),
        ({"seeds": 2, "mode": "mux"}, "Did you mean 'max'"),
        ([], r"sweep\(\) returns a list; it must be a dict"),
    ],
)
def test_faults_name_the_culprit(given, message):
    with pytest.raises(UserError, match=message):
        read_sweep(given, CONFIG)


def test_a_config_without_validation_is_refused():
    with pytest.raises(UserError, match="no `validation`, by which trials would be compared"):
        read_sweep({"seeds": 2}, {**CONFIG, "data": {"train": {}, "test": {}, "validation": None}})
    assert read_sweep({"seeds": 2, "metric": "validation/f1"}, CONFIG).metric == "f1"
