"""Strategies of adapters: where they stand, when they train, how they compose, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.strategies.bias_only import bias_only
from tljax.strategies.bottleneck import bottleneck
from tljax.strategies.compose import compose
from tljax.strategies.fine_tune import fine_tune
from tljax.strategies.freeze import freeze
from tljax.strategies.gradual_unfreezing import gradual_unfreezing
from tljax.strategies.ia3 import ia3
from tljax.strategies.last_k import last_k
from tljax.strategies.layer_decay import layer_decay
from tljax.strategies.linear_probe import linear_probe
from tljax.strategies.lora import lora
from tljax.strategies.lp_ft import lp_ft
from tljax.strategies.scratch import scratch

LENGTHS = {"steps": 1, "epochs": 10, "run": 100}
STAGES = ("embed", "block0", "block1")
MODULES = ("attention/query", "attention/key", "attention/value", "attention/output", "mlp/up", "mlp/down")
PATHS = (
    "backbone/embed/words/embedding",
    *(f"backbone/{b}/{m}/{leaf}" for b in STAGES[1:] for m in MODULES for leaf in ("kernel", "bias")),
    *(f"backbone/{b}/norm/scale" for b in STAGES[1:]),
    "head/out/kernel",
    "method/projector/kernel",
)
WINGS = {"head/out/kernel", "method/projector/kernel"}


def at(*kernels):
    """Paths of kernels from short forms: `0/query` → backbone/block0/attention/query/kernel."""
    found = []
    for each in kernels:
        block, module = each.split("/")
        found.append(
            next(p for p in PATHS if p.startswith(f"backbone/block{block}/") and p.endswith(f"/{module}/kernel"))
        )
    return tuple(found)


def leaves(*kernels, names=("lora/a", "lora/b")):
    return {f"{kernel.rpartition('/')[0]}/{name}" for kernel in at(*kernels) for name in names}


QV = ("0/query", "0/value", "1/query", "1/value")


def test_lora_stands_beside_queries_and_values_and_trains_with_the_wings():
    plan = compose({"lora": lora(STAGES, PATHS)}, PATHS)
    assert set(plan.adapters) == set(at(*QV))
    assert plan.live(0) == WINGS | leaves(*QV)
    assert not any("scale" in path for path in plan.live(0)), "the scale is a number that never trains"
    assert plan.rates == {} and plan.changes == ()
    with_magnitude = compose({"lora": lora(STAGES, PATHS, dora=True, b_rate=16)}, PATHS)
    assert with_magnitude.live(0) == WINGS | leaves(*QV, names=("lora/a", "lora/b", "lora/magnitude"))
    assert with_magnitude.rates == dict.fromkeys(leaves(*QV, names=("lora/b",)), 16.0)


def test_the_share_that_is_dropped_is_a_leaf_that_never_trains_and_a_table_has_none():
    plan = compose({"lora": lora(STAGES, PATHS, targets=["query", "words"], dropout=0.1)}, PATHS)
    for path, (adapter,) in plan.adapters.items():
        made = adapter.init(jax.random.key(0), jnp.zeros((4, 6)))
        assert set(made) == set(adapter.leaves) and ("lora/dropout" in made) == path.endswith("/kernel")
    assert plan.live(0) == WINGS | leaves("0/query", "1/query") | {
        "backbone/embed/words/lora/a",
        "backbone/embed/words/lora/b",
    }


def test_the_others_have_their_papers_places():
    one = compose({"ia3": ia3(STAGES, PATHS)}, PATHS)
    two = compose({"bottleneck": bottleneck(STAGES, PATHS)}, PATHS)
    assert one.live(0) == (
        WINGS
        | leaves("0/key", "0/value", "1/key", "1/value", names=("ia3/output",))
        | leaves("0/down", "1/down", names=("ia3/input",))
    )
    names = tuple(f"bottleneck/{part}/{leaf}" for part in ("down", "up") for leaf in ("kernel", "bias"))
    assert two.live(0) == WINGS | leaves("0/output", "0/down", "1/output", "1/down", names=names)
    pfeiffer = compose({"bottleneck": bottleneck(STAGES, PATHS, after="mlp")}, PATHS)
    assert pfeiffer.live(0) == WINGS | leaves("0/down", "1/down", names=names)
    beside = compose({"bottleneck": bottleneck(STAGES, PATHS, parallel=True)}, PATHS)
    assert beside.live(0) == WINGS | leaves(
        "0/down", "1/down", names=tuple(name.replace("bottleneck", "parallel") for name in names)
    )


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query", at("0/query", "1/query")),
        (["query|value"], at(*QV)),
        (["up", "backbone/block0/.*/down/kernel"], at("0/up", "1/up", "0/down")),
        (".*/words/embedding", ("backbone/embed/words/embedding",)),
        ("words", ("backbone/embed/words/embedding",)),
    ],
)
def test_targets_are_paths_or_names_of_modules(targets, expected):
    assert set(lora(STAGES, PATHS, targets=targets).adapters) == set(expected)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lora, {"targets": ["qury"]}, "the rule 'qury' matches no path. Paths look like: .*query/kernel"),
        (lora, {"targets": ["query", "backbone/.*/query/kernel"]}, "decides nothing"),
        (lora, {"targets": ["que("]}, "not a regular expression"),
        (lora, {"targets": ["norm"]}, "matches no path"),
        (lora, {"targets": []}, "lora names no kernel"),
        (lora, {"rank": 0, "alpha": -1, "b_rate": "fast"}, "(?s)alpha is -1.*b_rate is 'fast'.*rank is 0"),
        (lora, {"dropout": 1}, "dropout is 1; it is a share"),
        (lora, {"dropout": "0.1"}, "dropout is '0.1'; it is a share"),
        (ia3, {"inputs": ["words"]}, "words/embedding is a table"),
        (ia3, {"inputs": (), "targets": ()}, "ia3 names no kernel"),
        (bottleneck, {"width": 0, "after": "attention"}, "(?s)after is 'attention'.*width is 0"),
        (bottleneck, {"parallel": 1, "scale": 0}, "(?s)parallel is 1; it must be True.*scale is 0; it must be"),
        (bottleneck, {"batch_stats": "froze"}, "Did you mean 'frozen'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(STAGES, PATHS, **options)


def test_a_model_without_attention_is_asked_for_targets():
    paths = ("backbone/embed/conv/kernel", "backbone/stage0/layer0/conv/kernel", "head/out/kernel")
    for make in (lora, ia3, bottleneck):
        with pytest.raises(UserError, match=r"targets is not given.*there are: backbone/embed/conv/kernel"):
            make(("embed", "stage0"), paths)
    assert set(ia3(("embed", "stage0"), paths, targets="conv").adapters) == set(paths[:2])


# --- composing


def test_adapters_stand_where_the_other_plans_let_the_kernel_train():
    upper = compose({"lora": lora(STAGES, PATHS), "last_k": last_k(STAGES, PATHS, k=1)}, PATHS)
    assert set(upper.adapters) == set(at("1/query", "1/value"))
    assert upper.live(0) == WINGS | leaves("1/query", "1/value")
    ruled = compose({"freeze": freeze(STAGES, PATHS, rules=["block1"]), "lora": lora(STAGES, PATHS)}, PATHS)
    assert ruled.live(0) == WINGS | leaves("0/query", "0/value")
    free = compose({"fine_tune": fine_tune(STAGES, PATHS), "lora": lora(STAGES, PATHS)}, PATHS)
    assert free.live(0) == WINGS | leaves(*QV), "the base stays frozen"


def test_adapters_join_when_the_kernel_would():
    plan = compose({"lora": lora(STAGES, PATHS), "lp_ft": lp_ft(STAGES, PATHS)}, PATHS, LENGTHS)
    assert plan.changes == (50,)
    assert plan.live(49) == WINGS and plan.live(50) == WINGS | leaves(*QV)
    gradual = gradual_unfreezing(STAGES, PATHS, every=5, unit="steps")
    plan = compose({"gradual_unfreezing": gradual, "lora": lora(STAGES, PATHS)}, PATHS, LENGTHS)
    assert plan.changes == (5, 10), "the embeddings have no adapter, so their phase is none"
    assert plan.live(5) == WINGS | leaves("1/query", "1/value")
    assert plan.live(10) == WINGS | leaves(*QV)


def test_rates_of_the_kernel_are_rates_of_its_adapters():
    plan = compose({"layer_decay": layer_decay(STAGES, PATHS, rate=0.5), "lora": lora(STAGES, PATHS, b_rate=4)}, PATHS)
    (a,), (b,) = (leaves("0/query", names=(name,)) for name in ("lora/a", "lora/b"))
    assert plan.rates[a] == 0.25 and b not in plan.rates, "0.25 · 4 is 1"
    (a,), (b,) = (leaves("1/query", names=(name,)) for name in ("lora/a", "lora/b"))
    assert (plan.rates[a], plan.rates[b]) == (0.5, 2.0)


def test_several_kinds_stand_beside_one_kernel_but_not_two_of_a_kind():
    plans = {"lora": lora(STAGES, PATHS), "ia3": ia3(STAGES, PATHS), "bottleneck": bottleneck(STAGES, PATHS)}
    plan = compose(plans, PATHS)
    (value,) = at("0/value")
    assert [adapter.name for adapter in plan.adapters[value]] == ["lora", "ia3"]
    (down,) = at("0/down")
    assert [adapter.name for adapter in plan.adapters[down]] == ["ia3", "bottleneck"]
    again = {"lora": lora(STAGES, PATHS), "tljax.strategies.lora:lora": lora(STAGES, PATHS, targets="query")}
    with pytest.raises(UserError, match="puts a second lora beside backbone/block0/attention/query/kernel"):
        compose(again, PATHS)


def test_what_leaves_nothing_to_adapt_is_refused_by_name():
    for name, plan in (("linear_probe", linear_probe(STAGES, PATHS)), ("bias_only", bias_only(STAGES, PATHS))):
        with pytest.raises(UserError, match=f"{name} keeps all 4 kernels frozen that lora has adapters for"):
            compose({name: plan, "lora": lora(STAGES, PATHS)}, PATHS)
    with pytest.raises(UserError, match=r"scratch gives \d+ leaves random values .* and lora freezes them"):
        compose({"scratch": scratch(STAGES, PATHS), "lora": lora(STAGES, PATHS)}, PATHS)


# --- first values


def test_first_values():
    key, kernel = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 3, 16, 5))
    (adapter,) = lora(STAGES, PATHS, rank=4, alpha=8, rslora=True, dora=True).adapters[at("0/query")[0]]
    made = adapter.init(key, kernel)
    assert set(made) == set(adapter.leaves) and adapter.frozen == ("lora/scale",)
    assert float(made["lora/scale"]) == 4.0
    assert made["lora/a"].shape == (3, 3, 16, 4) and made["lora/b"].shape == (1, 1, 4, 5)
    bound = (3 * 3 * 16) ** -0.5
    assert 0.9 * bound < float(jnp.abs(made["lora/a"]).max()) <= bound and not made["lora/b"].any()
    np.testing.assert_allclose(made["lora/magnitude"], np.linalg.norm(kernel.reshape(-1, 5), axis=0), rtol=1e-5)
    plain = lora(STAGES, PATHS, rank=4, alpha=8, targets="words").adapters["backbone/embed/words/embedding"][0]
    made = plain.init(key, kernel[0, 0])
    assert float(made["lora/scale"]) == 2.0 and not made["lora/a"].any() and made["lora/b"].any()
    for path, shapes in ((at("0/key")[0], {"ia3/output": (5,)}), (at("0/down")[0], {"ia3/input": (16,)})):
        made = ia3(STAGES, PATHS).adapters[path][0].init(key, kernel)
        assert {name: leaf.shape for name, leaf in made.items()} == shapes
        assert all((leaf == 1).all() for leaf in made.values())
    made = bottleneck(STAGES, PATHS, width=7).adapters[at("0/down")[0]][0].init(key, kernel[0, 0])
    assert made["bottleneck/down/kernel"].shape == (5, 7) and made["bottleneck/up/kernel"].shape == (7, 5)
    assert not made["bottleneck/up/kernel"].any() and made["bottleneck/down/kernel"].any()
