"""Mean teacher: equals torch in value and gradient; the teacher is the moving average and has no gradient."""

import jax
import numpy as np
import pytest
import torch

from tests.methods.semi import (
    KINDS,
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
)
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.mean_teacher import mean_teacher

BATCHES = make_batches("student", "teacher")
SLOW = flatten(random_params(seed=1))


def torch_part(params, batch, distance):
    """As `softmax_mse_loss` and `softmax_kl_loss` of the authors have it, for the real rows."""
    with torch.no_grad():
        wanted = torch_logits(torch_params(random_params(seed=1)), batch["views"]["teacher"]["x"], train=False)
    own, real = torch_logits(params, batch["views"]["student"]["x"]), torch.tensor(batch["weight"])
    if distance == "squared":
        each = torch.nn.functional.mse_loss(own.softmax(1), wanted.softmax(1), reduction="none").mean(1)
    else:
        each = torch.nn.functional.kl_div(own.log_softmax(1), wanted.softmax(1), reduction="none").sum(1)
    same = (own.argmax(1) == wanted.argmax(1)) * real
    return (each * real).sum() / real.sum(), same.sum() / real.sum()


@pytest.mark.parametrize(
    ("options", "step", "scale"),
    [
        ({"weight": 10.0}, 0, 10.0),
        ({"distance": "kl", "ramp": 40}, 30, np.exp(-5 / 16)),
        ({"distance": "kl", "ramp": 40}, 99, 1.0),
        ({"weight": 0.0}, 0, 0.0),
    ],
)
def test_value_and_gradient_equal_torch(options, step, scale):
    method = mean_teacher(forward, TASK, **options)
    assert method.streams == KINDS and method.views == {"unlabelled": ("student", "teacher")}
    values, gradient, after, metrics = run(method, BATCHES, state={"teacher": SLOW}, step=step)
    assert after["passes"] == 1, "the teacher's pass leaves no trace in the state"
    params = torch_params(random_params())
    part, same = torch_part(params, BATCHES["unlabelled"], options.get("distance", "squared"))
    known = torch_task(params, BATCHES["train"])
    np.testing.assert_allclose(values["task"], known.item(), rtol=1e-5)
    np.testing.assert_allclose(values["consistency"], scale * part.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["agreement"], same.item(), rtol=1e-6)
    np.testing.assert_allclose(metrics["consistency_weight"], scale, rtol=1e-6)
    check_gradient(gradient, params, known + scale * part)


def test_the_teacher_gets_no_gradient():
    method = mean_teacher(forward, TASK)

    @jax.jit
    @jax.grad
    def through(teacher):
        state = {"passes": 0, "method": {"teacher": teacher}}
        found, _, _ = method.loss(random_params(), state, BATCHES, jax.random.key(0), 0)
        return found["consistency"].sum

    assert all(not np.any(x) for x in through(SLOW).values())


def test_padding_has_no_part():
    method, state = mean_teacher(forward, TASK), {"teacher": SLOW}
    found = [run(method, batches, state=state) for batches in (BATCHES, spoil_padding(BATCHES))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_teacher_is_the_mean_at_first_and_the_moving_average_then():
    method = mean_teacher(forward, TASK, decay=0.75)
    weights = [np.float32(x) for x in (4.0, 8.0, 0.0, 2.0, -6.0, 1.0)]
    state, seen = method.start({}, {"w": weights[0]}, {}), []
    for step, live in enumerate(weights[1:], start=1):
        state = method.after_step(state, {"w": live}, step)
        seen.append(float(state["teacher"]["w"]))
    wanted = [np.mean(weights[:2]), np.mean(weights[:3]), np.mean(weights[:4])]
    for live in weights[4:]:
        wanted.append(0.75 * wanted[-1] + 0.25 * live)
    np.testing.assert_allclose(seen, wanted, rtol=1e-6)


def test_a_leaf_that_becomes_live_later_is_averaged_from_then_on():
    method = mean_teacher(forward, TASK, decay=0.75)
    state = method.start({}, {"early": np.float32(4), "late": np.float32(8)}, {})
    state = method.after_step(state, {"early": np.float32(2)}, 1)
    assert state == {"teacher": {"early": 3, "late": 8}}
    state = method.after_step(state, {"early": np.float32(0), "late": np.float32(2)}, 2)
    # Until then the leaf was what it was at the start, so this too is the mean of three steps.
    np.testing.assert_allclose([state["teacher"][path] for path in ("early", "late")], [2, 6], rtol=1e-6)


def test_a_run_in_half_precision_keeps_a_float32_teacher_of_the_live_leaves(tmp_path):
    config = save_stripes(tmp_path)
    config["data"]["unlabelled"]["views"] = {"student": {"flip": True, "brightness": 0.3}, "teacher": {}}
    config["method"] = {"name": "mean_teacher", "decay": 0.9, "weight": 2.0}
    config["train"]["compute_dtype"] = "bfloat16"
    config["strategy"] = {"last_k": {"k": 1}}
    experiment = build(config)
    job = make_job(experiment)
    state, batches, losses, lives = job.state, job.batches(0), [], []
    assert state.method["teacher"].keys() == state.live.keys() < flatten(experiment.variables["params"]).keys()
    first = {path: np.array(x) for path, x in state.live.items()}
    for _ in range(15):
        state, metrics = job.step(state, next(batches))
        losses.append(float(metrics["losses"]["task"]))
        lives.append({path: np.array(x) for path, x in state.live.items()})
    average = first
    for n, live in enumerate(lives, start=1):
        keep = min(0.9, 1 - 1 / (n + 1))
        average = {path: keep * average[path] + (1 - keep) * live[path] for path in live}
    for path, leaf in state.method["teacher"].items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, average[path], rtol=1e-4, atol=1e-6)
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_options_out_of_range_are_refused_together():
    with pytest.raises(UserError, match=r"decay is 1(.|\n)*weight is -1(.|\n)*ramp is 0.5(.|\n)*Did you mean 'kl'"):
        mean_teacher(forward, TASK, decay=1, weight=-1, ramp=0.5, distance="kll")
    assert lookup(TABLE, "mean_teacher", what="method") is mean_teacher
