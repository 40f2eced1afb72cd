"""Runs whose equal stages are scanned: the losses, leaves and names of runs whose stages run one by one."""

import json

import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.training import inspect_experiment, make_job, training, training_batches
from tljax.cli.config import load_config
from tljax.cli.main import main

OPTIM = {"name": "sgd", "learning_rate": 0.05, "schedule": "constant"}
QLORA = {"lora": {"rank": 2, "dropout": 0.3}, "quantize": {"kind": "nf4"}}
STRATEGIES = {
    "all, in parts": ({"fine_tune": {}}, {"accumulate": 2}, ["block0 … block4"]),
    "beside kernels in few bits, rematerialised": (QLORA, {"remat": "stages"}, ["block0 … block4"]),
    "some": ({"last_k": {"k": 3}, "ema": {"decay": 0.9}}, {}, ["block0 … block1", "block2 … block4"]),
    "more and more": ({"gradual_unfreezing": {"every": 1, "unit": "steps"}}, {}, ["block0 … block4"]),
    "prefixes, in bfloat16": ({"prefix": {"length": 2}}, {"compute_dtype": "bfloat16"}, ["block0 … block4"]),
}
"""Strategy, section `train`, groups at the start."""
QUICK = ("beside kernels in few bits, rematerialised",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT of five blocks with dropout, and a config that fine-tunes it."""
    folder = tmp_path_factory.mktemp("scan")
    checkpoint = save_tiny_bert(folder / "bert", num_hidden_layers=5, initializer_range=0.2)
    save_config(folder / "config.py", checkpoint, save_csv(folder / "data.csv"))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    task = {"name": "classification", "pool": "mean", "init": "he"}
    return {**load_config(folder / "config.py"), "optim": OPTIM, "task": task}


def taken(config, steps=3, **train):
    """(experiment, state after some steps, their losses, what an evaluation finds)."""
    experiment = build({**config, "train": {**config["train"], "steps": steps, **train}})
    job = make_job(experiment)
    state, batches, losses = job.state, job.batches(0), []
    for step in range(steps):
        state, metrics = job.step(job.before(step, state), next(batches))
        losses.append(float(metrics["loss"]))
    return experiment, state, losses, job.evaluations["validation"](state)[0]


def assert_same(ours, theirs, tolerance):
    """Of two results of `taken`."""
    np.testing.assert_allclose(ours[2], theirs[2], rtol=tolerance)
    assert ours[3]["log_loss"] == pytest.approx(theirs[3]["log_loss"], rel=tolerance)
    (one, other) = (each[1] for each in (ours, theirs))
    assert [*one.live] == [*other.live] and one.live.keys() <= set(ours[0].plan.live(9))
    for path, leaf in other.evaluated.items():
        np.testing.assert_allclose(one.evaluated[path], leaf, atol=tolerance * np.abs(leaf).max() + 1e-7, err_msg=path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in STRATEGIES])
def test_a_run_takes_the_steps_of_one_that_scans_nothing(config, name):
    strategy, train, groups = STRATEGIES[name]
    chosen = {**config, "strategy": strategy}
    ours, theirs = taken(chosen, scan=True, **train), taken(chosen, **train)
    found = ours[0].model_at(0).groups
    assert [f"{group[0]} … {group[-1]}" for group in found] == groups and theirs[0].model_at(0).groups == ()
    assert_same(ours, theirs, 2e-2 if "bfloat16" in name else 2e-5)


@pytest.mark.long
def test_a_mesh_splits_scanned_stages_as_the_others(config):
    split = {**config, "mesh": {"fsdp": 2, "tensor": 2}, "strategy": QLORA}
    ours, theirs = taken(split, scan=True), taken({**split, "mesh": {"data": 1}})
    assert_same(ours, theirs, 2e-4)
    assert {len(leaf.sharding.device_set) for leaf in ours[1].live.values()} == {4}


def test_inspect_says_which_stages_are_scanned_and_counts_all_of_them(config):
    chosen = {**config, "strategy": {"last_k": {"k": 2}}}
    found = inspect_experiment(build({**chosen, "train": {**config["train"], "scan": True}}))
    assert found["groups"] == (("block0", "block1", "block2"), ("block3", "block4"))
    assert [row["stage"] for row in found["stages"]] == ["embed", *(f"block{i}" for i in range(5)), "head"]
    plain = build(chosen)
    parts, batches = training(plain), next(training_batches(plain, 0))
    counted = parts.step.lower(parts.state, parts.frozen, batches, parts.key).cost_analysis()["flops"]
    assert found["flops"]["step"] == pytest.approx(counted, rel=1e-4)


def test_where_nothing_is_equal_a_run_says_so(tmp_path):
    np.savez(tmp_path / "images.npz", image=np.zeros((8, 8, 8, 3), np.uint8), label=np.arange(8) % 2)
    model = {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4]}}
    data = {"train": {"source": f"npz:{tmp_path / 'images.npz'}", "processor": {"size": 8}}}
    experiment = build({"model": model, "data": data, "optim": OPTIM, "train": {"scan": True}})
    assert experiment.model_at(0).groups == ()
    assert "no two neighbouring stages of the cifar_resnet are equal" in experiment.notes[-1]


def _run(folder, workdir, steps, scan=True):
    """The exit code of a run of so many steps; two runs of other lengths take the same steps as far as they go."""
    fixed = ["--config.optim.schedule=constant", "--config.optim.warmup=0", "--config.train.eval_every=2"]
    given = [f"--workdir={workdir}", f"--config.train.scan={scan}", f"--config.train.steps={steps}"]
    return main(["train", f"--config={folder / 'config.py'}", *given, *fixed])


def _digests(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "record" / "metadata").read_text())["leaves"]


@pytest.mark.long
def test_a_run_is_saved_by_stage_and_goes_on_as_it_began(folder, tmp_path, capsys):
    assert _run(folder, tmp_path, 2) == 0
    paths = [path.split("backbone/")[1] for path in _digests(tmp_path, 2) if "backbone/" in path]
    assert {path.split("/")[0] for path in paths} == {"embed", *(f"block{i}" for i in range(5))}
    capsys.readouterr()
    assert _run(folder, tmp_path, 4, scan=False) == 2, "other roundings, and so another run"
    assert "train.scan: True → False" in capsys.readouterr().err


@pytest.mark.long
def test_an_interrupted_run_has_the_bits_of_one_that_was_not(folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert _run(folder, one, 4) == _run(folder, two, 2) == _run(folder, two, 4) == 0
    assert _digests(one, 4) == _digests(two, 4)
