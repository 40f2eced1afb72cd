"""The rules of the adviser: which one decides, on evidence made for each, and what they are made of."""

import numpy as np
import pytest

from tljax import domains
from tljax.transferability.advice import FEW, MANY, RULES, STRATEGIES, Evidence, advise, ahead, alignment_shift, gap

COUNT = 400


def right(share: float, *, seed: int = 0) -> np.ndarray:
    """Which of `COUNT` examples a classifier of that accuracy is right on."""
    found = np.arange(COUNT) < round(share * COUNT)
    return np.random.default_rng(seed).permutation(found)


def evidence(low: float = 0.5, top: float = 0.7, *, per_class: int = 20, **more) -> Evidence:
    linear = {"block0": right(low), "block1": right(top, seed=1)}
    neighbour = {"block0": right(0.3, seed=8), "block1": right(more.pop("neighbours", 0.3), seed=9)}
    return Evidence(per_class=per_class, right=linear, neighbour=neighbour, **more)


@pytest.mark.parametrize(
    ("known", "rule", "strategy"),
    [
        (evidence(raw=right(0.8, seed=2)), "raw inputs win", "fine_tune"),
        (evidence(top=0.99, per_class=MANY), "solved", "linear_probe"),
        (evidence(per_class=MANY), "many labels", "fine_tune"),
        (evidence(low=0.9, top=0.7), "upper stages lose", "last_stages"),
        (evidence(low=0.9, top=0.7, per_class=FEW - 1), "upper stages lose", "last_stages"),
        (evidence(per_class=FEW - 1, adaptable=True), "few labels", "linear_probe"),
        (evidence(neighbours=0.9), "neighbours win", "fine_tune"),
        (evidence(distance=0.2), "near source", "linear_probe"),
        (evidence(distance=1.9, adaptable=True), "some labels, attentions", "adapters"),
        (evidence(raw=right(0.3), neighbours=0.6), "some labels", "last_stages"),
    ],
)
def test_each_rule_decides_where_it_should(known, rule, strategy):
    advice = advise(known)
    assert (advice.rule, advice.strategy) == (rule, strategy)
    assert advice.depth == ("block0" if known.right["block0"].mean() > known.right["block1"].mean() else "block1")
    assert all(reason.endswith(".") and "nan" not in reason for reason in advice.reasons)


def test_every_rule_is_reached_and_names_a_strategy():
    assert {rule.strategy for rule in RULES} == set(STRATEGIES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_raw_inputs_that_win_by_chance_do_not_decide():
    # One example more of 400, which the classifiers find in different ones.
    known = evidence(top=0.7, raw=right(0.7025, seed=5))
    assert advise(known).rule != "raw inputs win"
    assert "which chance explains" in " ".join(advise(known).reasons)


def test_a_difference_is_judged_by_the_examples_that_only_one_has_right():
    first, second = np.ones(100, bool), np.ones(100, bool)
    second[:6] = False
    mean, error = gap(first, second)
    assert mean == pytest.approx(0.06) and error == pytest.approx(np.sqrt(0.06 * 0.94) / 10)
    assert ahead(first, second) and not ahead(second, first)
    apart = np.zeros(100, bool)
    apart[::2] = True  # as many right, but others
    assert not ahead(apart, ~apart)


def test_the_alignment_falls_where_upper_stages_forget_the_classes():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    classes = np.eye(3)[labels]
    kept = classes @ generator.normal(size=(3, 8)) + 0.1 * generator.normal(size=(300, 8))
    lost = generator.normal(size=(300, 8))
    aligned = {"block0": domains.linear_cka(kept, classes), "block1": domains.linear_cka(lost, classes)}
    known = evidence(alignment=aligned)
    assert aligned["block0"] > 0.7 and aligned["block1"] < 0.1
    assert alignment_shift(known) == pytest.approx(aligned["block0"] - aligned["block1"])
    assert "CKA falls" in " ".join(advise(known).reasons)
    assert alignment_shift(evidence()) is None
