"""Strategies with phases on a tiny BERT: what joins, what is carried over, and what a resumed run makes of it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.phases import phase_at
from tljax.assembly.training import make_job, trained_variables, training
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.cli.config import load_config
from tljax.train.display import Display
from tljax.train.job import train

GRADUAL = {"gradual_unfreezing": {"every": 2, "unit": "steps"}}
STEPS = 9


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    path = save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "data.csv"))
    config = load_config(path)
    return {**config, "train": {**config["train"], "steps": STEPS, "epochs": None, "save_every": 1, "log_every": 1}}


def adam(state, path):
    """(first moment, count) of a leaf in the state of AdamW."""
    for group in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu")):
        if hasattr(group, "mu") and isinstance(group.mu.get(path), jax.Array):
            return np.asarray(group.mu[path]), int(group.count)
    raise KeyError(path)


def test_leaves_join_with_their_stored_values_and_the_others_go_on(config):
    experiment = build({**config, "strategy": {"lp_ft": {"probe": 2, "unit": "steps"}}})
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    assert set(state.live) == {path for path in flatten(experiment.variables["params"]) if path.startswith("head/")}
    for done in range(2):
        state, _ = job.step(job.before(done, state), next(batches))
    head, moment = np.asarray(state.live["head/out/kernel"]), adam(state, "head/out/kernel")
    assert moment[1] == 2
    state = job.before(2, state)
    assert "pooler" not in str(sorted(state.live)), "what does not run is not live"
    np.testing.assert_array_equal(state.live["head/out/kernel"], head)
    carried = adam(state, "head/out/kernel")
    np.testing.assert_array_equal(carried[0], moment[0])
    assert carried[1] == 2
    path = "backbone/block0/mlp/up/kernel"
    np.testing.assert_array_equal(state.live[path], flatten(experiment.variables["params"])[path])
    assert adam(state, path)[1] == 0, "what Adam corrects in its first steps, it corrects in those of this leaf"
    state, _ = job.step(state, next(batches))
    assert not np.array_equal(state.live[path], flatten(experiment.variables["params"])[path])
    assert adam(state, "head/out/kernel")[1] == 3 and adam(state, path)[1] == 1


def test_a_phase_of_everything_is_plain_fine_tuning_from_that_step(config):
    """With SGD nothing is remembered: the second phase is a run that starts from the head of the first."""
    plain = {"optim": {"name": "sgd", "momentum": 0.0, "learning_rate": 0.1, "schedule": "linear"}}
    late = make_job(build({**config, **plain, "strategy": {"lp_ft": {"probe": 1, "unit": "steps"}}}))
    probe = make_job(build({**config, **plain, "strategy": {"linear_probe": {}}}))
    whole = make_job(build({**config, **plain, "strategy": {"fine_tune": {}}}))
    state, batches = late.state, late.batches(0)
    for done in range(2):
        state, metrics = late.step(late.before(done, state), next(batches))
    expected, batches = probe.state, probe.batches(0)
    expected, _ = probe.step(expected, next(batches))
    live = {**whole.state.live, **expected.live}
    expected, other = whole.step(whole.state._replace(live=live, step=expected.step), next(batches))
    # The schedule of the optimizer counts its own steps, so the rates differ: the gradients may not.
    np.testing.assert_allclose(metrics["gradient_norm"], other["gradient_norm"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], other["loss"], rtol=1e-6)


def test_every_phase_has_the_state_that_its_checkpoints_have(config):
    experiment = build({**config, "strategy": GRADUAL})
    parts = training(experiment)
    assert [phase.start for phase in parts.phases] == [0, 2, 4, 6]
    assert phase_at(parts.phases, 0).start == phase_at(parts.phases, 2).start == 0
    assert phase_at(parts.phases, 3).start == 2
    for before, after in zip(parts.phases, parts.phases[1:], strict=False):
        assert before.live < after.live and not after.live & after.frozen.keys()
    job, state = make_job(experiment), None
    state, batches = job.state, job.batches(0)
    for done in range(STEPS):
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), job.shapes(done))
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == shapes
        state, _ = job.step(job.before(done, state), next(batches))
    for phase in parts.phases:
        assert phase.step._cache_size() == 0
    assert job.events.keys() == {2, 4, 6} and "block1" in job.events[2]


class Killed(Exception):
    pass


def killed_at(job, step):
    """The job, whose device fails in the step after `step` steps."""

    def before(done, state):
        if done == step:
            raise Killed
        return job.before(done, state)

    return job._replace(before=before)


@pytest.mark.parametrize("kills", [(2, 3), pytest.param(range(1, STEPS), marks=pytest.mark.long)], ids=["some", "all"])
def test_a_run_that_was_killed_in_any_phase_ends_as_the_undisturbed_one(config, tmp_path, capsys, kills):
    chosen, display = {**config, "strategy": {**GRADUAL, "ema": {"decay": 0.9}, "l2_sp": {}, "mixout": {}}}, Display()
    once = train(make_job(build(chosen)), tmp_path / "once", display=display)
    assert "step 2: from here on" in " ".join(capsys.readouterr().err.split())
    for step in kills:  # 2 is a change of phase
        with pytest.raises(Killed):
            train(killed_at(make_job(build(chosen)), step), tmp_path / "killed", display=display)
    resumed = train(make_job(build(chosen)), tmp_path / "killed", display=display)
    leaves = zip(jax.tree.leaves(once.state), jax.tree.leaves(resumed.state), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)
    assert losses(tmp_path / "once") == losses(tmp_path / "killed")
    trained, _ = trained_variables(build(chosen), tmp_path / "killed", say=print)
    assert any(
        not np.array_equal(leaf, flatten(build(chosen).variables["params"])[path])
        for path, leaf in flatten(trained["params"]).items()
        if path.startswith("backbone/")
    )


def losses(workdir: Path):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


def test_other_phases_are_another_live_set(config, tmp_path):
    display = Display()
    with pytest.raises(Killed):
        train(killed_at(make_job(build({**config, "strategy": GRADUAL})), 3), tmp_path, display=display)
    other = {**config, "strategy": {"gradual_unfreezing": {"every": 3, "unit": "steps"}}}
    with pytest.raises(UserError, match="another config"):
        train(make_job(build(other)), tmp_path, display=display)
