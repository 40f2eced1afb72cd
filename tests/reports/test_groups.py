"""Groups of runs: by config without the seed, called by what tells them apart."""

from pathlib import Path

import pytest

from tljax.base.configs import flat_config
from tljax.base.errors import UserError
from tljax.reports.gather import Entry
from tljax.reports.groups import candidates, make_groups, shortened
from tljax.reports.records import Run


def entry(seed=0, **config):
    return Entry(Run(Path(f"runs/{seed}"), {"seed": seed, **config}, {}, {}, []), "done")


def named(*configs):
    return [group.name for group in make_groups([entry(**config) for config in configs])]


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    groups = make_groups([entry(seed, optim={"learning_rate": rate}) for rate in (0.1, 0.2) for seed in (2, 10, 0)])
    assert [[each.seed for each in group.entries] for group in groups] == [[0, 2, 10]] * 2
    assert [group.settings for group in groups] == [{"optim.learning_rate": 0.1}, {"optim.learning_rate": 0.2}]


def test_where_runs_are_seen_is_no_difference():
    assert len(make_groups([entry(train={"steps": 3}), entry(train={"steps": 3, "wandb": "p"})])) == 1


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        (
            [{"strategy": {"lora": {"rank": 8}}}, {"strategy": {"fine_tune": {}}}],
            ["lora", "fine_tune"],
        ),
        (
            [{"strategy": {"last_k": {"k": k}}} for k in (1, 3)],
            ["k=1", "k=3"],
        ),
        (
            [{"strategy": {"last_k": {"k": 1}}}, {"strategy": {"last_k": {"k": 3}}}, {"strategy": {"fine_tune": {}}}],
            ["last_k, k=1", "last_k, k=3", "fine_tune"],
        ),
        (
            [{"strategy": {"lora": {"rank": 8}}}, {"strategy": {"lora": {"rank": 8}, "layer_decay": {"rate": 0.9}}}],
            ["lora", "lora + layer_decay"],
        ),
        (
            [{"optim": {"learning_rate": 1e-4}}, {"optim": {"learning_rate": 0.001}}],
            ["learning_rate=0.0001", "learning_rate=0.001"],
        ),
        (
            [{"optim": {"rate": 1}, "head": {"rate": 2}}, {"optim": {"rate": 2}, "head": {"rate": 1}}],
            ["optim.rate=1", "optim.rate=2"],
        ),
        ([{"model": {"source": "weights/a"}}, {"model": {"source": "weights/b/"}}], ["source=a", "source=b"]),
        ([{"train": {"steps": 5}}, {"train": {}}], ["steps=5", "as it is"]),
        (
            [{"strategy": {"lora": {}}, "data": {"x": 1}}, {"strategy": {"fine_tune": {}}, "data": {"x": 2}}],
            ["lora", "fine_tune"],
        ),
        ([{"strategy": {"fine_tune": {}}}], ["fine_tune"]),
    ],
)
def test_a_name_is_the_shortest_that_tells_groups_apart(configs, names):
    assert named(*configs) == names


def test_keys_lose_what_they_have_in_common():
    assert shortened(["a.b.rate", "c.b.rate", "d.k"]) == {"a.b.rate": "a.b.rate", "c.b.rate": "c.b.rate", "d.k": "k"}
    assert flat_config({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}


def test_strategies_are_compared_and_rates_are_chosen():
    groups = make_groups(
        entry(strategy=strategy, optim={"learning_rate": rate})
        for strategy in ({"lora": {"rank": 4}}, {"lora": {"rank": 8}}, {"fine_tune": {}})
        for rate in (0.1, 0.2)
    )
    found = candidates(groups)
    assert {name: len(members) for name, members in found.items()} == {
        "lora, rank=4": 2,
        "lora, rank=8": 2,
        "fine_tune": 2,
    }
    by_rate = candidates(groups, ["optim"])
    assert {name: len(members) for name, members in by_rate.items()} == {"learning_rate=0.1": 3, "learning_rate=0.2": 3}
    with pytest.raises(UserError, match="Did you mean 'optim'"):
        candidates(groups, ["optm"])


def test_without_another_difference_every_setting_is_compared():
    groups = make_groups(entry(optim={"learning_rate": rate}) for rate in (0.1, 0.2))
    assert list(candidates(groups)) == ["learning_rate=0.1", "learning_rate=0.2"]
