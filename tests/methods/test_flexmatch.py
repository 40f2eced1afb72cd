"""FlexMatch: equals torch; thresholds as in the paper, from what is remembered; the same in parts and on repetition."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests.methods.semi import (
    KEY,
    KINDS,
    SHAPES,
    TASK,
    check_gradient,
    forward,
    make_batches,
    random_params,
    run,
    save_stripes,
    spoil_padding,
    torch_logits,
    torch_params,
    torch_task,
    train_reports,
)
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.flexmatch import class_thresholds, flexmatch, remember
from tljax.train.state import first_state
from tljax.train.step import make_step

COUNT = 20
BATCHES = make_batches("weak", "strong", count=COUNT)


def counted(selected, classes, warm_up):
    """β / (2 − β) by counting one by one."""
    sizes = collections.Counter(int(c) for c in selected)
    unused = sizes.pop(-1, 0)
    most = max([*sizes.values(), unused if warm_up else 0, 1])
    shares = [sizes[c] / most for c in range(classes)]
    return [share / (2 - share) for share in shares]


@pytest.mark.parametrize("warm_up", [True, False])
def test_thresholds_equal_a_count(warm_up):
    draw = np.random.default_rng(0)
    for unused in (0, 5, 19, 20):
        selected = np.array([-1] * unused + draw.integers(0, 3, COUNT - unused).tolist(), np.int32)
        found = class_thresholds(jnp.asarray(selected), 4, warm_up=warm_up)
        np.testing.assert_allclose(found, counted(selected, 4, warm_up), rtol=1e-6)
    assert found.max() == 0, "nobody has a class yet: everybody counts"


def test_value_gradient_and_memory_equal_torch():
    method = flexmatch(forward, TASK, threshold=0.9, weight=2.0, warm_up=False)
    assert method.streams == KINDS and method.views == {"unlabelled": ("weak", "strong")}
    _, state = method.init(KEY, SHAPES)
    state = method.start(state, {}, {"unlabelled": COUNT})
    selected = np.array([0] * 6 + [1] * 3 + [2] * 1 + [-1] * 10, np.int32)
    state = method.after_step({**state, "selected": jnp.asarray(selected)}, {}, 1)
    values, gradient, after, metrics = run(method, BATCHES, state=state)
    params, batch = torch_params(random_params()), BATCHES["unlabelled"]
    thresholds = 0.9 * torch.tensor([1.0, 0.5 / 1.5, (1 / 6) / (2 - 1 / 6)])
    real = torch.tensor(batch["weight"])
    confidence, label = torch_logits(params, batch["views"]["weak"]["x"]).detach().softmax(1).max(1)
    mask = (confidence >= thresholds[label]) * real
    assert ((confidence >= 0.9) * real).sum() < mask.sum() <= real.sum(), "lower thresholds let more through"
    logits = torch_logits(params, batch["views"]["strong"]["x"])
    part = 2 * (torch.nn.functional.cross_entropy(logits, label, reduction="none") * mask).sum() / real.sum()
    known = torch_task(params, BATCHES["train"])
    np.testing.assert_allclose(values["unlabelled"], part.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["above_threshold"], (mask.sum() / real.sum()).item(), rtol=1e-6)
    np.testing.assert_allclose(metrics["mean_threshold"], thresholds.mean().item(), rtol=1e-6)
    check_gradient(gradient, params, known + part)
    for i, sure, own, weight in zip(batch["index"], confidence, label, batch["weight"], strict=True):
        if sure >= 0.9 and weight:
            selected[i] = own
    np.testing.assert_array_equal(after["method"]["selected"], selected)
    np.testing.assert_array_equal(after["method"]["thresholds"], state["thresholds"])


def test_of_repeated_examples_the_last_confident_row_is_remembered():
    before = jnp.array([-1, 2, -1, 1], jnp.int32)
    index, labels = jnp.array([0, 3, 0, 1, 0, -1]), jnp.array([1, 0, 2, 0, 0, 2])
    confident = jnp.array([True, True, True, False, False, False])
    np.testing.assert_array_equal(jax.jit(remember)(before, index, labels, confident), [2, 2, -1, 0])


def test_without_weight_the_gradient_is_the_supervised_one_and_padding_has_no_part():
    method = flexmatch(forward, TASK, weight=0.0)
    state = method.start(method.init(KEY, SHAPES)[1], {}, {"unlabelled": COUNT})
    params = torch_params(random_params())
    found = [run(method, batches, state=state) for batches in (BATCHES, spoil_padding(BATCHES))]
    check_gradient(found[0][1], params, torch_task(params, BATCHES["train"]))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_accumulated_parts_equal_the_whole_batch():
    method = flexmatch(forward, TASK, threshold=0.6)
    batches = make_batches("weak", "strong", rows=8, padding=0, count=COUNT)
    batches["unlabelled"]["index"][:] = [3, 5, 3, 7, 3, 5, 9, 3]  # over parts and within them
    live = flatten(random_params())
    optimizer = optax.sgd(0.1)
    ends = []
    for parts in (1, 2, 4):
        begun = method.start(method.init(KEY, SHAPES)[1], live, {"unlabelled": COUNT})
        state = first_state(live, optimizer, batch_stats={}, method=begun)
        step = jax.jit(make_step(method, optimizer, compute_dtype=jnp.float32, accumulate=parts))
        for _ in range(3):
            state, _ = step(state, {}, batches, KEY)
        ends.append(state)
    assert (np.asarray(ends[0].method["selected"]) >= 0).any() and ends[0].method["thresholds"].max() > 0
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, ends[0].method, other.method)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ends[0].live, other.live)


def test_it_learns_from_images_without_labels(tmp_path):
    config = save_stripes(tmp_path)
    config["data"]["unlabelled"]["views"] = {"weak": {}, "strong": {"crop": 1, "contrast": 0.5, "cutout": 0.3}}
    config["method"] = {"name": "flexmatch", "threshold": 0.8}
    config["train"]["accumulate"] = 2
    seen = train_reports(config, 20)
    known = [each["losses"]["task"] for each in seen]
    assert np.mean(known[-4:]) < 0.5 * np.mean(known[:4])
    first, last = seen[0]["metrics"], seen[-1]["metrics"]
    assert first["above_threshold"] == 1 and first["mean_threshold"] == 0, "the warm-up begins with everybody"
    assert last["remembered"] > 0.5 and last["mean_threshold"] > 0.3


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match=r"threshold is -0\.1(.|\n)*weight is -1(.|\n)*temperature is -2"):
        flexmatch(forward, TASK, threshold=-0.1, weight=-1, temperature=-2)
    with pytest.raises(UserError, match="flexmatch needs a task"):
        flexmatch(forward, TASK._replace(name="ctc")).init(None, {})
    assert lookup(TABLE, "flexmatch", what="method") is flexmatch
