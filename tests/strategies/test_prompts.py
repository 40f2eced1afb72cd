"""Strategies of prefixes and prompts: where they stand, what trains, how they compose, what is refused."""

import jax
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.strategies.compose import compose
from tljax.strategies.freeze import freeze
from tljax.strategies.last_k import last_k
from tljax.strategies.layer_decay import layer_decay
from tljax.strategies.linear_probe import linear_probe
from tljax.strategies.lora import lora
from tljax.strategies.prefix import prefix
from tljax.strategies.prompt import prompt
from tljax.strategies.visual_prompt import visual_prompt

STAGES = ("embed", "block0", "block1")
PATHS = (
    "backbone/embed/words/embedding",
    "backbone/embed/positions/embedding",
    *(f"backbone/{b}/attention/{m}/kernel" for b in STAGES[1:] for m in ("query", "key", "value", "output")),
    "head/out/kernel",
)
KEYS = {f"backbone/{b}/attention/{m}/prefix/vectors" for b in STAGES[1:] for m in ("key", "value")}
BOUND = (3 / 8) ** 0.5


def test_a_prefix_stands_beside_every_key_and_value():
    plan = compose({"prefix": prefix(STAGES, PATHS, length=4)}, PATHS)
    assert plan.live(0) == KEYS | {"head/out/kernel"}
    (places,) = plan.adapters["backbone/embed/positions/embedding"]
    assert places.leaves == places.frozen == ("prefix/places",)
    assert places.init(jax.random.key(0), np.zeros((9, 8)))["prefix/places"].tolist() == [1, 1, 1, 1]
    (keys,) = plan.adapters["backbone/block0/attention/key/kernel"]
    made = keys.init(jax.random.key(0), np.zeros((8, 500)))["prefix/vectors"]
    assert made.shape == (4, 500) and 0.018 < float(made.std()) < 0.022
    assert "backbone/embed/positions/embedding" not in prefix(STAGES, PATHS, places=False).adapters


def test_prompts_stand_beside_words_and_blocks():
    plan = compose({"prompt": prompt(STAGES, PATHS)}, PATHS)
    assert plan.live(0) == {"backbone/embed/words/prompt/vectors", "head/out/kernel"}
    shallow, deep = (visual_prompt(STAGES, PATHS, length=50, deep=deep) for deep in (False, True))
    first, second = (f"backbone/block{i}/attention/query/kernel" for i in range(2))
    assert set(shallow.adapters) == {first} and set(deep.adapters) == {first, second}
    made = shallow.adapters[first][0].init(jax.random.key(0), np.zeros((8, 24)))["visual_prompt/vectors"]
    assert made.shape == (50, 8) and 0.9 * BOUND < float(abs(made).max()) <= BOUND


def test_they_compose_as_adapters_do():
    upper = compose({"prefix": prefix(STAGES, PATHS), "last_k": last_k(STAGES, PATHS, k=1)}, PATHS)
    assert upper.live(0) == {path for path in KEYS if "block1" in path} | {"head/out/kernel"}
    assert "backbone/embed/positions/embedding" not in upper.adapters, "the table is frozen, and so are the places"
    plans = {"prompt": prompt(STAGES, PATHS), "prefix": prefix(STAGES, PATHS), "lora": lora(STAGES, PATHS)}
    decayed = compose({**plans, "layer_decay": layer_decay(STAGES, PATHS, rate=0.5)}, PATHS)
    (value,) = {path for path in KEYS if "block1/attention/value" in path}
    assert decayed.rates[value] == 0.5 and decayed.rates["backbone/embed/words/prompt/vectors"] == 0.125
    assert [a.name for a in decayed.adapters["backbone/block0/attention/value/kernel"]] == ["prefix", "lora"]
    with pytest.raises(UserError, match="keeps all 1 kernels frozen that prompt has adapters for"):
        compose({"prompt": prompt(STAGES, PATHS), "linear_probe": linear_probe(STAGES, PATHS)}, PATHS)
    with pytest.raises(UserError, match="freeze keeps all 1 kernels frozen that visual_prompt has"):
        rules = freeze(STAGES, PATHS, rules=["block0"])
        compose({"freeze": rules, "visual_prompt": visual_prompt(STAGES, PATHS)}, PATHS)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (prefix, {"length": 0, "deviation": -1, "places": 1}, "(?s)length is 0.*deviation is -1.*places is 1"),
        (prefix, {"targets": ["query"]}, "query/kernel; a prefix stands beside the kernels of keys and values"),
        (prefix, {"targets": ["key"]}, "block0/attention/key/kernel and not backbone/block0/attention/value/kernel"),
        (prefix, {"targets": ["kez"]}, "matches no path"),
        (prompt, {"start": "vocab", "length": True}, "(?s)Did you mean 'vocabulary'.*length is True"),
        (visual_prompt, {"deep": "yes", "length": 1.0}, "(?s)deep is 'yes'.*length is 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(STAGES, PATHS, **options)


def test_models_without_their_places_are_refused():
    paths = ("backbone/embed/conv/kernel", "backbone/stage0/conv/kernel", "head/out/kernel")
    for make, message in ((prefix, "targets is not given"), (prompt, "no table of words"), (visual_prompt, "no ViT")):
        with pytest.raises(UserError, match=message):
            make(("embed", "stage0"), paths)
