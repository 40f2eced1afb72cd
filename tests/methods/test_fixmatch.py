"""FixMatch: equals torch in value and gradient; what is not confident, not real or not weighted has no part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.methods.semi import (
    KINDS,
    SHAPES,
    TASK,
    check_gradient,
    forward,
    make_batches,
    random_params,
    run,
    spoil_padding,
    torch_logits,
    torch_params,
    torch_task,
    train_reports,
)
from tests.tiny import save_csv, save_tiny_bert
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.fixmatch import fixmatch
from tljax.tasks.regression import regression
from tljax.tasks.spec import TaskSpec

BATCHES = make_batches("weak", "strong")


def torch_part(params, batch, threshold, temperature):
    """(loss of the unlabelled part, share that counts), as the paper writes them."""
    real = torch.tensor(batch["weight"])
    with torch.no_grad():
        weak = torch_logits(params, batch["views"]["weak"]["x"])
        confidence, label = weak.softmax(1).max(1)
    target = label if temperature is None else (weak / temperature).softmax(1)
    each = torch.nn.functional.cross_entropy(
        torch_logits(params, batch["views"]["strong"]["x"]), target, reduction="none"
    )
    mask = (confidence >= threshold).float()
    return (each * mask * real).sum() / real.sum(), (mask * real).sum() / real.sum()


@pytest.mark.parametrize("options", [{}, {"threshold": 0.8, "weight": 0.5}, {"threshold": 0.6, "temperature": 0.5}])
def test_value_and_gradient_equal_torch(options):
    method = fixmatch(forward, TASK, **options)
    assert method.streams == KINDS and method.views == {"unlabelled": ("weak", "strong")}
    values, gradient, state, metrics = run(method, BATCHES)
    assert state["passes"] == 1, "the weak view's own pass leaves no trace in the state"
    params = torch_params(random_params())
    part, share = torch_part(params, BATCHES["unlabelled"], options.get("threshold", 0.95), options.get("temperature"))
    assert 0 < share < 1, "some of the examples count, and some do not"
    part = part * options.get("weight", 1.0)
    known = torch_task(params, BATCHES["train"])
    np.testing.assert_allclose(values["task"], known.item(), rtol=1e-5)
    np.testing.assert_allclose(values["unlabelled"], part.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["above_threshold"], share.item(), rtol=1e-6)
    check_gradient(gradient, params, known + part)


def test_one_pass_is_for_models_whose_rows_see_each_other():
    seen = []

    def watched(params, state, inputs, rng, **options):
        seen.append(len(inputs["x"]))
        return forward(params, state, inputs, rng, **options)

    method = fixmatch(watched, TASK, threshold=0.6)
    apart, joined = (run(method, BATCHES, stats=stats) for stats in (None, {"norm": jnp.zeros(3)}))
    assert seen == [8, 12, 20], "8 unlabelled rows alone, with the 4 labelled ones, all together"
    for first, second in zip(apart[:2], joined[:2], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, second)


def test_without_weight_or_confidence_the_gradient_is_the_supervised_one():
    params = torch_params(random_params())
    for options in ({"weight": 0.0}, {"threshold": 1.0}):
        values, gradient, _, _ = run(fixmatch(forward, TASK, **options), BATCHES)
        assert values["unlabelled"] == 0
        check_gradient(gradient, params, torch_task(params, BATCHES["train"]))


def test_padding_has_no_part():
    first, second = (run(fixmatch(forward, TASK, threshold=0.5), b) for b in (BATCHES, spoil_padding(BATCHES)))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_it_learns_from_views_of_texts(tmp_path):
    columns = dict(text="review", label="mood")
    entry = dict(source=f"csv:{save_csv(tmp_path / 'data.csv')}", columns=columns, processor=dict(max_length=16))
    views = dict(weak=dict(), strong=dict(drop=0.3, swap=0.2))
    config = dict(
        model=dict(source=str(save_tiny_bert(tmp_path / "bert"))),
        task=dict(name="classification", pool="mean"),
        method=dict(name="fixmatch", threshold=0.6),
        optim=dict(name="adamw", learning_rate=1e-2),
        data=dict(train=dict(**entry, shots_per_class=4), unlabelled=dict(**entry, batch_size=16, views=views)),
        train=dict(batch_size=8, steps=30),
        mesh=dict(data=1),
    )
    seen = train_reports(config, 30)
    known = [each["losses"]["task"] for each in seen]
    assert np.mean(known[-5:]) < 0.5 * np.mean(known[:5])
    first, last = (np.mean([each["metrics"]["above_threshold"] for each in part]) for part in (seen[:5], seen[-5:]))
    assert first < 0.5 < last, "it grows confident about texts whose labels it never saw"


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match=r"threshold is 1\.5(.|\n)*weight is -1(.|\n)*temperature is 0"):
        fixmatch(forward, TASK, threshold=1.5, weight=-1, temperature=0)
    scores = regression(TaskSpec(classes=None, own_pool="mean", pools=("mean",)))
    with pytest.raises(UserError, match="fixmatch needs a task that gives each example one class"):
        fixmatch(forward, scores).init(None, SHAPES)
    assert lookup(TABLE, "fixmatch", what="method") is fixmatch
