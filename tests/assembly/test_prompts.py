"""Runs with prefixes and prompts on a tiny BERT: what moves, that it learns, what is exported, what is refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models.reference import make_model
from tests.tiny import train_steps
from tljax.assembly.adapters import with_adapters
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.checkpoints.save import save_pretrained
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.models.forward import init_variables
from tljax.strategies.visual_prompt import visual_prompt

KINDS = {"prefix": {"prefix": {"length": 4}}, "prompt": {"prompt": {"length": 4}}}


@pytest.fixture(scope="module")
def config(folder):
    config = load_config(folder / "config.py")
    optim = {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"}
    settings = {**config["train"], "batch_size": 32}
    return {**config, "optim": optim, "train": settings, "data": {"train": config["data"]["train"]}}


@pytest.mark.parametrize("kind", KINDS)
def test_only_vectors_and_head_move_and_they_learn(kind, config, tmp_path):
    chosen = {**config, "strategy": KINDS[kind]}
    experiment, losses = train_steps(chosen, 30)
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    before, after = (flatten(each.variables["params"]) for each in (build(chosen), experiment))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == experiment.plan.live(0)
    assert {path for path in moved if not path.endswith("/vectors")} == {p for p in before if p.startswith("head/")}
    total, live = make_job(experiment).summary["total"], sum(before[path].size for path in moved)
    assert total["live"] == live and total["optimizer_bytes"] == 8 * live
    with pytest.raises(UserError, match=f"{kind} has .* go into no kernel.*--adapter"):
        save_pretrained(experiment.model._replace(head=None), experiment.variables, tmp_path / "out")


def test_a_cache_is_refused_below_a_prompt(config, tmp_path):
    from tljax.assembly.caching import with_cache

    strategy = {"prompt": {"length": 4}, "lp_ft": {"probe": 2, "unit": "steps"}}
    experiment = build({**config, "strategy": strategy, "train": {**config["train"], "cache": str(tmp_path)}})
    with pytest.raises(UserError, match="the strategy prompt puts tokens before those of the data"):
        with_cache(experiment, say=print)


def test_the_command_line_exports_for_peft_and_starts_from_it(folder, tmp_path, capsys):
    workdir, adapter, strategy = tmp_path / "run", tmp_path / "adapter", KINDS["prefix"]
    options = [f"--config.strategy={strategy}", "--config.train.steps=2", "--config.task.pool=own"]
    assert main(["train", f"--config={folder / 'config.py'}", f"--workdir={workdir}", *options]) == 0
    assert main(["export", f"--workdir={workdir}", "--adapter", f"--output={adapter}"]) == 0
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {"base_model.classifier.weight", "prompt_embeddings"} <= tensors.keys()
    again = {**load_config(folder / "config.py"), "seed": 7}
    stored = {"prefix": {"length": 4, "source": str(adapter)}}
    found = flatten(build({**again, "strategy": stored}).variables["params"])
    path = "backbone/block0/attention/key/prefix/vectors"
    np.testing.assert_array_equal(found[path], tensors["prompt_embeddings"][:, :16])
    with pytest.raises(UserError, match=r"has the shape \(4, 16\), and the config's \(5, 16\)"):
        build({**again, "strategy": {"prefix": {**stored["prefix"], "length": 5}}})


def test_families_without_them_are_refused_by_name(config):
    with pytest.raises(UserError, match="visual_prompt is for the families vit, deit, and the model is of bert"):
        build({**config, "strategy": {"visual_prompt": {}}})


def test_visual_prompts_of_a_vit_are_read():
    entries = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=8)
    model = make_model("vit", {**entries, "patch_size": 4})
    variables = jax.jit(lambda: init_variables(model, jax.random.key(0)))()
    plan = visual_prompt((), tuple(flatten(variables["params"])), length=3, deep=True)
    adapted = with_adapters(model, variables, plan.adapters, jax.random.key(1))
    assert sum(path.endswith("visual_prompt/vectors") for path in flatten(adapted["params"])) == 2
