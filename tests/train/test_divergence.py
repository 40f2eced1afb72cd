"""Steps that are not finite: the run stops, keeps the batch and finds the operation; or skips the step and counts."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.types import Loss, Method
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.methods.supervised import supervised
from tljax.train.divergence import IN_A_ROW
from tljax.train.state import first_state
from tljax.train.step import make_step

BAD = 5
"""The step at which `poisoned` divides by zero."""


def poisoned(forward, task, *, after: int = BAD, steps: int = 1) -> Method:
    """The supervised method, whose loss is not finite in `steps` steps from step `after` on."""
    method = supervised(forward, task)

    def loss(params, state, batches, rng, step):
        losses, state, metrics = method.loss(params, state, batches, rng, step)
        bad = (step + 1 >= after) & (step + 1 < after + steps)
        total = losses["task"].sum * jnp.log(jnp.where(bad, -1.0, jnp.e))
        return {"task": losses["task"]._replace(sum=total)}, state, metrics

    return method._replace(loss=loss)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverging")
    extra = 'config.method = dict(name="tests.train.test_divergence:poisoned")'
    return save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "d.csv"), extra=extra)


def lines(workdir, kind):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def test_the_run_stops_with_its_batch_kept_and_the_replay_finds_the_operation(config, tmp_path, capsys):
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"The loss is nan at step {BAD}" in said and f"step-{BAD}.npz" in said
    kept = np.load(tmp_path / "run" / "diverged" / f"step-{BAD}.npz")
    job = make_job(build({**load_config(config), "strategy": {"fine_tune": {}}}))
    batch = next(job.batches(BAD - 1))["train"]
    np.testing.assert_array_equal(kept["train/inputs/input_ids"], batch["inputs"]["input_ids"])
    np.testing.assert_array_equal(kept["train/targets"], batch["targets"])
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert before == ["4"]
    assert main([*command, "--debug_nans"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"Step {BAD}, with its recorded batch: the first nan is in" in said
    assert "encountered in log" in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
    # Data that were changed since are said.
    kept = dict(kept)
    kept["train/targets"] = 1 - kept["train/targets"]
    np.savez(tmp_path / "run" / "diverged" / f"step-{BAD}.npz", **kept)
    assert main([*command, "--debug_nans"]) == 0
    assert "the data give another batch now" in " ".join(capsys.readouterr().err.split())


def test_without_a_recorded_step_the_replay_says_so(config, tmp_path, capsys):
    assert main(["train", f"--config={config}", f"--workdir={tmp_path}", "--debug_nans"]) == 2
    assert "holds no step" in capsys.readouterr().err


def test_skipped_steps_are_counted_and_a_resumed_run_counts_on(config, tmp_path, capsys):
    skip = "--config.train.nonfinite=skip"
    once = ["train", f"--config={config}", f"--workdir={tmp_path / 'once'}", skip, "--config.optim.schedule=constant"]
    assert main(once) == 0
    (skipped,) = lines(tmp_path / "once", "skipped")
    assert (skipped["step"], skipped["what"], skipped["total"]) == (BAD, "loss", 1)
    assert lines(tmp_path / "once", "end")[0]["step"] == 12
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path / "once", "train"))
    capsys.readouterr()
    two = [*once[:2], f"--workdir={tmp_path / 'two'}", *once[3:]]
    assert main([*two, "--config.train.steps=8"]) == 0
    assert main(two) == 0
    assert lines(tmp_path / "two", "skipped") == [skipped]


def test_too_many_in_a_row_stop_the_run(config, tmp_path, capsys):
    changes = [f"--config.method.steps={2 * IN_A_ROW}", f"--config.train.steps={2 * IN_A_ROW + BAD}"]
    command = ["train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.nonfinite=skip", *changes]
    assert main(command) == 3
    assert f"{IN_A_ROW} steps one after another were skipped" in " ".join(capsys.readouterr().err.split())
    assert len(lines(tmp_path, "skipped")) == IN_A_ROW


def test_a_skipped_step_changes_nothing_but_its_number():
    def loss(params, state, batches, rng, step):
        value = jnp.sum(params["head"]["w"] ** 2 * batches["x"])
        return {"task": Loss(value, jnp.float32(1))}, {**state, "method": state["method"] + 1}, {}

    optimizer = optax.adam(0.1)
    state = first_state(
        {"head/w": jnp.arange(3.0)}, optimizer, batch_stats={}, method=jnp.zeros(()), average=True, skip=True
    )
    step = jax.jit(make_step(Method(loss=loss), optimizer, compute_dtype=jnp.float32, average=0.9, skip=True))
    take = partial(step, frozen={}, key=jax.random.key(0))
    good, bad = {"x": jnp.ones(3)}, {"x": jnp.array([1.0, jnp.nan, 1.0])}
    one, _ = take(state, batches=good)
    two, metrics = take(one, batches=bad)
    assert (int(two.step), int(metrics["skipped"]["total"]), int(metrics["skipped"]["in_a_row"])) == (2, 1, 1)
    same = [one._replace(step=0, skipped={}), two._replace(step=0, skipped={})]
    jax.tree.map(np.testing.assert_array_equal, *same)
    # The loss is finite, and the square of the gradient is not.
    edge, metrics = take(two._replace(live={"head/w": jnp.full(3, 1e10)}), batches={"x": jnp.full(3, 1e15)})
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
    assert (int(metrics["skipped"]["total"]), int(metrics["skipped"]["in_a_row"])) == (2, 2)
    np.testing.assert_array_equal(edge.live["head/w"], np.full(3, 1e10, np.float32))
    three, metrics = take(two, batches=good)
    assert (int(metrics["skipped"]["total"]), int(metrics["skipped"]["in_a_row"])) == (1, 0)
    assert not np.array_equal(three.live["head/w"], two.live["head/w"])


@pytest.mark.parametrize(("value", "message"), [("skp", "Did you mean 'skip'"), (None, "None")])
def test_an_unknown_policy_is_refused(config, tmp_path, capsys, value, message):
    assert main(["train", f"--config={config}", f"--workdir={tmp_path}", f"--config.train.nonfinite={value}"]) == 2
    assert message in capsys.readouterr().err
