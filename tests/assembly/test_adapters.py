"""Runs with adapters on a tiny BERT: what moves, what it costs, how a run goes on, and what is exported."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tljax.assembly.adapters import with_adapters
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job, trained_variables, with_leaves
from tljax.base.errors import UserError
from tljax.base.paths import flatten, unflatten
from tljax.checkpoints.save import save_pretrained
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.models.forward import forward
from tljax.train.display import Display
from tljax.train.job import train

KINDS = {
    "lora": {"lora": {"rank": 2, "targets": ["query", "down", "words"], "dropout": 0.3}},
    "dora": {"lora": {"rank": 2, "dora": True}, "last_k": {"k": 1}},
    "ia3": {"ia3": {}},
    "bottleneck": {"bottleneck": {"width": 3}, "layer_decay": {"rate": 0.5}},
    "parallel": {"bottleneck": {"width": 3, "parallel": True}},
}


@pytest.fixture(scope="module")
def config(folder):
    config = load_config(folder / "config.py")
    data = {"train": config["data"]["train"]}
    # The head starts at zero and so does one half of each adapter: what is below moves from the third step on.
    optim = {"name": "adamw", "learning_rate": 3e-3, "schedule": "constant"}
    train = {**config["train"], "steps": 4, "epochs": None, "save_every": 1}
    return {**config, "data": data, "optim": optim, "train": train}


def is_adapter(path):
    return any(f"/{name}/" in path for name in ("lora", "ia3", "bottleneck", "parallel"))


@pytest.fixture(scope="module", params=KINDS)
def trained(request, config):
    """(kind, experiment, variables after three steps, job)."""
    experiment = build({**config, "strategy": KINDS[request.param]})
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    for _ in range(3):
        state, _ = job.step(state, next(batches))
    return request.param, experiment, with_leaves(experiment, state.live, state.batch_stats), job


def test_adapters_and_head_move_and_nothing_else(trained):
    kind, experiment, variables, _ = trained
    before, after = flatten(experiment.variables["params"]), flatten(variables["params"])
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == experiment.plan.live(0)
    assert any(is_adapter(path) for path in moved)
    assert all(is_adapter(path) or path.startswith("head/") for path in moved)
    if kind == "dora":
        assert all(path.startswith(("backbone/block1/", "head/")) for path in moved)


def test_only_live_leaves_have_gradients_and_optimizer_state(trained):
    _, experiment, _, job = trained
    live = sum(flatten(experiment.variables["params"])[path].size for path in experiment.plan.live(0))
    total = job.summary["total"]
    assert total["live"] == live and total["gradient_bytes"] == 4 * live
    assert total["optimizer_bytes"] == 8 * live, "two moments of AdamW"


def logits(experiment, variables, batch):
    return np.asarray(forward(experiment.model, variables, batch["inputs"])[0]["logits"])


def test_the_first_step_starts_from_the_checkpoints_outputs(trained, config):
    kind, experiment, _, job = trained
    batch = next(job.batches(0))["train"]
    base = build({**config, "strategy": {"linear_probe": {}}})
    found, expected = (logits(e, e.variables, batch) for e in (experiment, base))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if kind == "dora" else 0)


def test_the_export_is_merged_and_transformers_computes_the_same(trained, config, tmp_path):
    import torch
    from transformers import AutoModel

    kind, experiment, variables, job = trained
    batch = next(job.batches(0))["train"]
    model = experiment.model._replace(head=None)
    if kind in ("bottleneck", "parallel"):
        with pytest.raises(UserError, match=f"{kind} has a nonlinearity"):
            save_pretrained(model, variables, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    save_pretrained(model, variables, tmp_path / "out")
    theirs, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {name: torch.tensor(np.asarray(x)).long() for name, x in batch["inputs"].items()}
    with torch.no_grad():
        expected = theirs.eval()(**inputs).last_hidden_state.numpy()
    found = np.asarray(forward(model, variables, batch["inputs"])[0]["hidden"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    start = np.asarray(forward(model, experiment.variables, batch["inputs"])[0]["hidden"])
    assert np.abs(found - start).max() > 1e-3


def test_what_goes_into_the_side_branch_is_dropped_in_training_alone(config):
    def first_losses(dropout):
        experiment = build({**config, "strategy": {"lora": {"rank": 2, "dropout": dropout}}})
        job = make_job(experiment)
        # b is 0 at first, and nothing that is dropped would be seen.
        live = {path: leaf + 1 if path.endswith("lora/b") else leaf for path, leaf in job.state.live.items()}
        live["head/out/kernel"] = live["head/out/kernel"] + np.arange(live["head/out/kernel"].size).reshape(
            live["head/out/kernel"].shape
        )
        batch, variables = next(job.batches(0)), with_leaves(experiment, live, job.state.batch_stats)
        evaluated = logits(experiment, variables, batch["train"])
        _, metrics = job.step(job.state._replace(live=live), batch)
        return float(metrics["loss"]), evaluated

    (plain, evaluated), (dropped, same) = first_losses(0.0), first_losses(0.5)
    assert plain != dropped
    np.testing.assert_array_equal(evaluated, same)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "strategy",
    [
        {"lora": {"rank": 2, "dropout": 0.3}, "lp_ft": {"probe": 2, "unit": "steps"}},
        {"lora": {"rank": 2}, "quantize": {"kind": "int8"}},
    ],
    ids=["in phases", "beside eight bits"],
)
def test_a_killed_run_goes_on_and_ends_as_the_undisturbed_one(config, tmp_path, strategy):
    chosen, display = {**config, "strategy": strategy, "train": {**config["train"], "cache": "off"}}, Display()
    once = train(make_job(build(chosen)), tmp_path / "once", display=display)
    job = make_job(build(chosen))

    def before(done, state):
        if done == 3:
            raise Killed
        return job.before(done, state)

    with pytest.raises(Killed):
        train(job._replace(before=before), tmp_path / "killed", display=display)
    resumed = train(make_job(build(chosen)), tmp_path / "killed", display=display)
    leaves = zip(jax.tree.leaves(once.state), jax.tree.leaves(resumed.state), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)
    experiment = build(chosen)
    variables, step = trained_variables(experiment, tmp_path / "killed", say=print)
    path = "backbone/block0/attention/query/lora/b"
    assert step == 4 and np.asarray(flatten(variables["params"])[path]).any()


def test_a_choice_of_kernels_does_not_move_the_numbers_of_others(config):
    one, two = (
        flatten(build({**config, "strategy": {"lora": {"targets": targets}}}).variables["params"])
        for targets in (["query"], ["query", "key"])
    )
    path = "backbone/block1/attention/query/lora/a"
    np.testing.assert_array_equal(one[path], two[path])
    assert not np.array_equal(two[path], two[path.replace("query", "key")])
    base = flatten(build(config).variables["params"])
    np.testing.assert_array_equal(base["head/out/kernel"], one["head/out/kernel"])


def test_the_stage_cache_holds_what_the_stages_below_the_adapters_make(config, tmp_path, capsys):
    from tljax.assembly.caching import with_cache

    strategy = {"lora": {"rank": 2}, "last_k": {"k": 1}}
    plain = {**config["train"], "cache": str(tmp_path / "cache")}
    experiment = build({**config, "strategy": strategy, "train": plain})
    cached = with_cache(experiment, say=lambda line: None)
    assert cached.cached[0].model.start == "block1"
    states = []
    for each in (experiment, cached):
        job = make_job(each)
        state, _ = job.step(job.state, next(job.batches(0)))
        states.append(state.live)
    for path, leaf in states[0].items():
        np.testing.assert_allclose(leaf, states[1][path], atol=1e-5, err_msg=path)


def test_the_command_line_trains_predicts_and_exports(folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    common = [
        "--config.strategy={'lora': {'rank': 2, 'dropout': 0.25}}",
        "--config.train.steps=2",
        "--config.task.pool=own",
        "--config.train.cache=off",
    ]
    assert main(["train", f"--config={folder / 'config.py'}", f"--workdir={workdir}", *common]) == 0
    assert main(["inspect", f"--workdir={workdir}"]) == 0
    assert main(["export", f"--workdir={workdir}"]) == 0
    assert "lora" not in str(sorted(load_file(workdir / "export" / "model.safetensors")))
    assert main(["export", f"--workdir={workdir}", "--adapter", f"--output={tmp_path / 'adapter'}"]) == 0
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.25
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.classifier.weight" in tensors
    stored = tensors["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"]
    again = load_config(folder / "config.py")
    strategy = {"lora": {"rank": 2, "dropout": 0.5, "source": str(tmp_path / "adapter")}}
    found = flatten(build({**again, "seed": 7, "strategy": strategy}).variables["params"])
    np.testing.assert_array_equal(found["backbone/block0/attention/query/lora/a"], stored.T)
    with pytest.raises(UserError, match=r"(?s)has no .*key/lora.*scale is 8, and the config's 4"):
        wrong = {**strategy["lora"], "targets": ["query", "value", "key"], "alpha": 8}
        build({**again, "strategy": {"lora": wrong}})


def test_kernels_without_a_side_branch_are_refused_by_name(config):
    experiment = build({**config, "strategy": {"lora": {}}})
    adapters = experiment.plan.adapters["backbone/block0/attention/query/kernel"]
    flat, key = flatten(experiment.variables["params"]), jax.random.key(0)
    for shape, message in (((3, 4, 5), r"extra/kernel has the shape \(3, 4, 5\)"), ((4, 5), "read by no layer")):
        params = unflatten({**flat, "backbone/block0/extra/kernel": np.ones(shape, np.float32)})
        variables = {**experiment.variables, "params": params}
        with pytest.raises(UserError, match=message):
            with_adapters(experiment.model, variables, {"backbone/block0/extra/kernel": adapters}, key)
