"""Strategies on a small tower: who is live, how fast, what is refused, and how they compose."""

import pytest

from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.base.types import Plan
from tljax.strategies import TABLE
from tljax.strategies.bias_only import bias_only
from tljax.strategies.compose import compose
from tljax.strategies.ema import ema
from tljax.strategies.fine_tune import fine_tune
from tljax.strategies.freeze import freeze
from tljax.strategies.gradual_unfreezing import gradual_unfreezing
from tljax.strategies.l2_sp import l2_sp
from tljax.strategies.last_k import last_k
from tljax.strategies.layer_decay import layer_decay
from tljax.strategies.linear_probe import linear_probe
from tljax.strategies.lp_ft import lp_ft
from tljax.strategies.mixout import mixout
from tljax.strategies.norm_only import norm_only
from tljax.strategies.rates import rates
from tljax.strategies.scratch import scratch
from tljax.strategies.surgical import surgical

LENGTHS = {"steps": 1, "epochs": 12.5, "run": 100}
STAGES = ("embed", "block0", "block1", "block10", "pool", "norm")
PATHS = (
    "backbone/embed/table",
    "backbone/block0/attention/kernel",
    "backbone/block0/bias",
    "backbone/block1/attention/kernel",
    "backbone/block10/attention/kernel",
    "backbone/norm/scale",
    "head/out/kernel",
    "method/projector/kernel",
)
WINGS = {path for path in PATHS if not path.startswith("backbone/")}


def of(*stages):
    return {path for path in PATHS if path.split("/")[1] in stages and path.startswith("backbone/")}


def test_the_table_leads_to_every_strategy():
    required = {
        "freeze": {"rules": ["embed"]},
        "last_k": {"k": 1},
        "layer_decay": {"rate": 0.5},
        "surgical": {"stages": ["embed"]},
        "rates": {"rules": [("head/.*", 2.0)]},
        **{name: {"targets": ["attention"]} for name in ("lora", "ia3", "bottleneck")},
    }
    heads = (f"backbone/block0/attention/{name}/kernel" for name in ("query", "key", "value"))
    paths = (*PATHS, "backbone/embed/words/embedding", *heads)
    for name in TABLE:
        plan = lookup(TABLE, name, what="strategy")(STAGES, paths, **required.get(name, {}))
        assert isinstance(plan, Plan)
        assert plan.live(0) <= set(paths)


def test_the_plain_ones():
    assert fine_tune(STAGES, PATHS).live(0) == set(PATHS)
    assert linear_probe(STAGES, PATHS).live(7) == WINGS
    assert scratch(STAGES, PATHS).live(0) == scratch(STAGES, PATHS).reset == set(PATHS)
    assert not fine_tune(STAGES, PATHS).reset


@pytest.mark.parametrize(
    ("rules", "frozen"),
    [
        (["embed"], of("embed")),
        ("embed", of("embed")),
        ([r"block\d+"], of("block0", "block1", "block10")),
        (["block1"], of("block1")),
        ([r"backbone/block[0-1]/.*"], of("block0", "block1")),
        ([r".*/kernel"], {path for path in PATHS if path.endswith("kernel")}),
        ([("block1", "live"), (r"block\d+", "frozen")], of("block0", "block10")),
        ([(".*/bias", "live"), ("backbone/.*", "frozen")], set(PATHS) - WINGS - {"backbone/block0/bias"}),
        (["(?i)EMBED", "block0|block1"], of("embed", "block0", "block1")),
    ],
)
def test_freezing_by_rules(rules, frozen):
    assert freeze(STAGES, PATHS, rules=rules).live(0) == set(PATHS) - frozen


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["blok1"], "'blok1' matches no path. Paths look like: block1"),
        (["backbone/block7/.*"], "matches no path"),
        (["embed", "backbone/embed/.*"], "'backbone/embed/.*' decides nothing"),
        (["backbone/.*", "embed"], "decides nothing"),
        ([("embed", "frozn")], "Did you mean 'frozen'"),
        ([("embed",)], "neither an expression nor a pair"),
        ([], "no rule"),
        (["block("], "not a regular expression"),
    ],
)
def test_faulty_rules_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        freeze(STAGES, PATHS, rules=rules)


def test_a_stage_without_leaves_cannot_be_frozen():
    with pytest.raises(UserError, match="the rule 'pool' matches no path"):
        freeze(STAGES, PATHS, rules=["pool"])


def test_the_last_k_stages_with_parameters():
    assert last_k(STAGES, PATHS, k=1).live(0) == WINGS | of("norm")
    assert last_k(STAGES, PATHS, k=2).live(0) == WINGS | of("norm", "block10")
    assert last_k(STAGES, PATHS, k=5).live(0) == set(PATHS)
    for k in (0, 6, -1, 1.0):
        with pytest.raises(UserError, match=r"from 1 to 5.*embed, block0, block1, block10, norm"):
            last_k(STAGES, PATHS, k=k)


def test_layer_decay_falls_from_the_head_down():
    plan = layer_decay(STAGES, PATHS, rate=0.5)
    assert plan.live(0) == set(PATHS)
    assert plan.rates == {
        "backbone/norm/scale": 0.5,
        "backbone/block10/attention/kernel": 0.25,
        "backbone/block1/attention/kernel": 0.125,
        "backbone/block0/attention/kernel": 0.0625,
        "backbone/block0/bias": 0.0625,
        "backbone/embed/table": 0.03125,
    }


def test_layer_decay_with_the_norm_at_the_heads_rate():
    rates = layer_decay(STAGES, PATHS, rate=0.5, with_head=("norm",)).rates
    assert "backbone/norm/scale" not in rates
    assert rates["backbone/block10/attention/kernel"] == 0.5
    with pytest.raises(UserError, match="Did you mean 'norm'"):
        layer_decay(STAGES, PATHS, rate=0.5, with_head=("nrm",))


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, "fast", True])
def test_a_decay_out_of_range_is_refused(rate):
    with pytest.raises(UserError, match=r"layer_decay\.rate"):
        layer_decay(STAGES, PATHS, rate=rate)


def test_batch_statistics_are_a_choice_by_name():
    assert fine_tune(STAGES, PATHS, batch_stats="frozen").batch_stats == "frozen"
    with pytest.raises(UserError, match=r"config\.strategy\.last_k\.batch_stats is 'froze'. Did you mean 'frozen'"):
        last_k(STAGES, PATHS, k=1, batch_stats="froze")


# --- composing


def test_plans_compose():
    plan = compose(
        {
            "freeze": freeze(STAGES, PATHS, rules=["embed"]),
            "last_k": last_k(STAGES, PATHS, k=3),
            "layer_decay": layer_decay(STAGES, PATHS, rate=0.5),
            "again": Plan(
                live=lambda step: frozenset(PATHS), rates={"head/out/kernel": 3.0, "backbone/norm/scale": 2.0}
            ),
        },
        PATHS,
    )
    assert plan.live(0) == WINGS | of("block1", "block10", "norm")
    assert plan.rates["backbone/block1/attention/kernel"] == 0.125
    assert plan.rates["head/out/kernel"] == 3.0
    assert "backbone/norm/scale" not in plan.rates  # 2 · 0.5
    assert plan.batch_stats == "auto"


def test_what_is_live_may_change_with_the_step():
    late = Plan(live=lambda step: frozenset(PATHS) if step > 3 else frozenset(WINGS), changes=(4,))
    plan = compose({"late": late, "freeze": freeze(STAGES, PATHS, rules=["embed"])}, PATHS, LENGTHS)
    assert plan.changes == (4,)
    assert plan.live(3) == WINGS
    assert plan.live(4) == set(PATHS) - of("embed")
    at_once = compose({"late": late}, PATHS)
    assert at_once.live(0) == set(PATHS) and at_once.changes == ()


def test_what_was_live_is_not_frozen_again():
    early = Plan(live=lambda step: frozenset(WINGS) if step > 3 else frozenset(PATHS), changes=(4,))
    with pytest.raises(UserError, match=r"early freezes \d+ leaves at step 4 .* must stay live"):
        compose({"early": early}, PATHS, LENGTHS)


@pytest.mark.parametrize(
    ("options", "step"), [({}, 50), ({"probe": 1, "unit": "epochs"}, 13), ({"probe": 7, "unit": "steps"}, 7)]
)
def test_the_head_trains_first_and_then_everything(options, step):
    plan = compose({"lp_ft": lp_ft(STAGES, PATHS, **options)}, PATHS, LENGTHS)
    assert plan.changes == (step,)
    assert plan.live(0) == plan.live(step - 1) == WINGS
    assert plan.live(step) == plan.live(99) == set(PATHS)


def test_stages_join_from_the_top():
    plan = compose({"gradual_unfreezing": gradual_unfreezing(STAGES, PATHS, every=10, unit="steps")}, PATHS, LENGTHS)
    assert plan.live(9) == WINGS
    assert plan.live(10) == WINGS | of("norm")
    assert plan.live(20) == WINGS | of("norm", "block10")
    assert plan.live(plan.changes[-1]) == set(PATHS)
    assert plan.live(plan.changes[-1] - 1) == set(PATHS) - of("embed")
    first = gradual_unfreezing(STAGES, PATHS, first=2)
    assert first.live(0) == WINGS | of("norm", "block10") and first.changes[0] == 1 and first.unit == "epochs"
    with_frozen = compose({"g": first, "freeze": freeze(STAGES, PATHS, rules=["embed"])}, PATHS, LENGTHS)
    assert len(with_frozen.changes) == len(first.changes) - 1, "the last phase would be the one before"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lp_ft, {"unit": "epoch"}, "Did you mean 'epochs'"),
        (lp_ft, {"probe": 0}, "probe is 0; it must be a number above 0"),
        (gradual_unfreezing, {"every": "often"}, "every is 'often'"),
        (gradual_unfreezing, {"first": 9}, "first is 9; it must be a whole number from 0 to"),
    ],
)
def test_times_that_make_no_sense_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(STAGES, PATHS, **options)


def test_no_strategy_trains_everything():
    assert compose({}, PATHS).live(0) == set(PATHS)


def test_nothing_live_is_refused_by_name():
    backbone = tuple(path for path in PATHS if path not in WINGS)
    with pytest.raises(UserError, match="linear_probe leave nothing to train"):
        compose({"linear_probe": linear_probe(STAGES, backbone)}, backbone)
    with pytest.raises(UserError, match="last_k with freeze leave nothing"):
        compose(
            {
                "last_k": last_k(STAGES, backbone, k=1),
                "freeze": freeze(STAGES, backbone, rules=["norm"]),
            },
            backbone,
        )


def test_a_frozen_random_backbone_is_refused_by_name():
    with pytest.raises(UserError, match=r"scratch gives 6 leaves random values .* and linear_probe freezes them"):
        compose({"scratch": scratch(STAGES, PATHS), "linear_probe": linear_probe(STAGES, PATHS)}, PATHS)
    compose({"scratch": scratch(STAGES, PATHS), "layer_decay": layer_decay(STAGES, PATHS, rate=0.9)}, PATHS)


def test_the_stricter_statistics_hold_and_opposites_conflict():
    plans = {
        "fine_tune": fine_tune(STAGES, PATHS),
        "last_k": last_k(STAGES, PATHS, k=1, batch_stats="frozen"),
    }
    assert compose(plans, PATHS).batch_stats == "frozen"
    plans["fine_tune"] = fine_tune(STAGES, PATHS, batch_stats="train")
    with pytest.raises(UserError, match="fine_tune says 'train', last_k says 'frozen'"):
        compose(plans, PATHS)


# --- what trains


@pytest.mark.parametrize(
    ("make", "options", "live"),
    [
        (bias_only, {}, {"backbone/block0/bias"}),
        (norm_only, {}, of("norm")),
        (surgical, {"stages": ("block0", "norm")}, of("block0", "norm")),
        (surgical, {"stages": "embed"}, of("embed")),
        (surgical, {"stages": "block[01]"}, of("block0", "block1")),
    ],
)
def test_what_trains_beside_the_wings(make, options, live):
    assert make(STAGES, PATHS, **options).live(0) == WINGS | live


def test_surgery_may_leave_the_head_alone():
    plan = surgical(STAGES, PATHS, stages=["block1"], head=False)
    assert plan.live(0) == of("block1") | {"method/projector/kernel"}
    with pytest.raises(UserError, match=r"'blok1' matches no stage with parameters\. Did you mean 'block1'"):
        surgical(STAGES, PATHS, stages=["blok1"])


def test_what_is_not_there_cannot_train():
    with pytest.raises(UserError, match="no leaf called bias"):
        bias_only(STAGES, [path for path in PATHS if not path.endswith("bias")])
    with pytest.raises(UserError, match="no leaf called scale"):
        norm_only(STAGES, [path for path in PATHS if not path.endswith("scale")])


def test_rates_by_rules():
    plan = rates(STAGES, PATHS, rules=[("backbone/embed/.*", 0.1), ("head/.*", 0)])
    assert plan.rates == {"backbone/embed/table": 0.1, "head/out/kernel": 0.0}
    both = compose({"rates": plan, "layer_decay": layer_decay(STAGES, PATHS, rate=0.5)}, PATHS)
    assert both.rates["backbone/embed/table"] == pytest.approx(0.1 * 0.5**5)
    with pytest.raises(UserError, match="matches no path"):
        rates(STAGES, PATHS, rules=[("backbone/embd/.*", 0.1)])
    with pytest.raises(UserError, match="is no pair"):
        rates(STAGES, PATHS, rules=["embed"])


def test_pulls_add_up_and_mixing_takes_the_higher():
    plan = compose(
        {
            "l2_sp": l2_sp(STAGES, PATHS, strength=0.2, head=0.0),
            "again": l2_sp(STAGES, PATHS, strength=0.3, head=0.1),
            "mixout": mixout(STAGES, PATHS, probability=0.7),
            "less": mixout(STAGES, PATHS, probability=0.1),
            "ema": ema(STAGES, PATHS, decay=0.9),
        },
        PATHS,
    )
    assert plan.pull["backbone/norm/scale"] == pytest.approx(0.5) and plan.pull["head/out/kernel"] == 0.1
    assert "method/projector/kernel" not in plan.pull
    assert plan.mixed["backbone/block0/attention/kernel"] == 0.7 and "backbone/block0/bias" not in plan.mixed
    assert plan.average == 0.9
    with pytest.raises(UserError, match="ema with more each keep an average"):
        compose({"ema": ema(STAGES, PATHS), "more": ema(STAGES, PATHS, decay=0.5)}, PATHS)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (l2_sp, {"strength": -1}, "strength is -1"),
        (mixout, {"probability": 1}, "up to, but not including, 1"),
        (ema, {"decay": 1.0}, "up to, but not including, 1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(STAGES, PATHS, **options)
