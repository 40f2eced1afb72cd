"""What `inspect` tells of a tiny BERT: FLOPs beside full fine-tuning's, temporaries, the size of the stage cache."""

import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.caching import estimates, with_cache
from tljax.assembly.experiment import build
from tljax.assembly.training import inspect_experiment
from tljax.cli.config import load_config
from tljax.cli.main import main

LORA = {"lora": {"rank": 2}, "quantize": {"kind": "nf4"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    save_tiny_bert(folder / "bert", hidden_size=64, intermediate_size=256)
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return load_config(folder / "config.py")


def test_the_share_of_full_fine_tuning(config):
    shares = {}
    for name, strategy in {"probe": {"linear_probe": {}}, "lora": LORA, "all": {"fine_tune": {}}}.items():
        found = inspect_experiment(build({**config, "strategy": strategy}))
        shares[name] = found["flops"]["share"]
        assert found["temporary_bytes"] > 0 and found["cache"] == {}
    # A forward pass, one and the gradients of the activations, these and the gradients of the kernels.
    assert 0.3 < shares["probe"] < 0.4 < 0.6 < shares["lora"] < 0.8
    assert shares["all"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("strategy", [{"linear_probe": {}}, {"last_k": {"k": 1}}], ids=str)
def test_the_size_of_the_cache_is_told_before_it_is_made(config, strategy, tmp_path):
    told = build({**config, "strategy": strategy, "train": {**config["train"], "cache": str(tmp_path)}})
    ((start, (size, why)),) = estimates(told).items()
    assert (start, why) == (0, "") and not any(tmp_path.iterdir())
    (view,) = with_cache(told, say=lambda line: None).cached.values()
    stored = sum(source.records._store.bytes for source in view.sources.values())
    if "last_k" in strategy:
        assert 0.3 * size < stored < size, "texts shorter than 16 tokens take less"
    else:
        assert size == 80 * 64 * 4 and size < stored < size + 4096, "vectors, and files that describe them"


def test_phases_have_a_cache_each_or_a_reason(config):
    strategy = {"gradual_unfreezing": {"every": 8, "unit": "steps"}}
    train = {**config["train"], "steps": 26, "cache": "auto", "cache_limit": 5e4}
    found = estimates(build({**config, "strategy": strategy, "train": train}))
    assert [size > 0 for size, _ in found.values()] == [True, False, False, False]
    assert [*found] == [0, 8, 16, 24] and "would take up to" in found[8][1] and "embed, the lowest" in found[24][1]
    full = estimates(build({**config, "train": train}))
    assert full == {0: (0, "embed, the lowest stage, trains.")}


def test_the_command_line_shows_them(folder, capsys):
    options = ["--config.strategy={'last_k': {'k': 1}}", "--config.train.cache=auto"]
    assert main(["inspect", f"--config={folder / 'config.py'}", *options]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "% of a step that trains everything" in shown
    assert "temporaries of the step, activations above all: " in shown
    assert "stage cache: up to" in shown
