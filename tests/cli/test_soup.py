"""Means of runs: what they hold, how they are chosen, and that a run folder comes out."""

import json

import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly import soup
from tljax.assembly.experiment import build
from tljax.base.paths import flatten
from tljax.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a fine-tuned tiny BERT, with an average of the weights in both."""
    folder = tmp_path_factory.mktemp("soup")
    config = save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "data.csv"))
    for seed in (0, 1):
        change = [f"--config.seed={seed}", "--config.strategy={'fine_tune': {}, 'ema': {'decay': 0.5}}"]
        assert main(["train", f"--config={config}", f"--workdir={folder / str(seed)}", *change]) == 0
    return folder


def parts_of(runs):
    configs = {n: json.loads((runs / n / "config.json").read_text())["config"] for n in ("0", "1")}
    experiments = {name: build(config) for name, config in configs.items()}
    return experiments["0"], {n: soup.trained(each, runs / n, say=print) for n, each in experiments.items()}


def test_a_mean_is_the_mean_and_its_folder_is_a_run(runs, tmp_path, capsys):
    arguments = [f"--input={runs / '0'}", f"--input={runs / '1'}", f"--workdir={tmp_path / 'mean'}"]
    assert main(["soup", *arguments]) == 0
    assert "mean of 2" in capsys.readouterr().err
    experiment, parts = parts_of(runs)
    made = soup.trained(experiment, tmp_path / "mean", say=print)
    assert made["live"].keys() == parts["0"]["live"].keys()
    for path, leaf in made["live"].items():
        both = np.asarray(parts["0"]["live"][path]), np.asarray(parts["1"]["live"][path])
        np.testing.assert_allclose(leaf, np.mean(both, axis=0), rtol=1e-6, atol=1e-8)
        assert not np.array_equal(*both)
    for verb in (["evaluate", "--split=test"], ["export"]):
        assert main([*verb, f"--workdir={tmp_path / 'mean'}"]) == 0
    assert (tmp_path / "mean" / "export" / "model.safetensors").is_file()
    (line,) = [json.loads(each) for each in (tmp_path / "mean" / "records.jsonl").read_text().splitlines()]
    assert line["state"] == "done" and line["metrics"]["validation"]["accuracy"] >= 0
    assert line["processor_seconds"] > 0 and line["live_parameters"] == sum(x.size for x in made["live"].values())


def test_a_greedy_soup_is_never_worse_on_validation(runs):
    experiment, parts = parts_of(runs)
    tried = soup.greedy(experiment, parts)
    accuracies = [each.numbers["accuracy"] for each in tried]
    assert accuracies[-1] >= max(accuracies[:-1])
    assert tried[0].numbers["accuracy"] >= tried[1].numbers["accuracy"]
    alone = soup.greedy(experiment, {"0": parts["0"]})
    assert alone[-1].name == "greedy soup of 1"
    assert all(alone[-1].weights["live"][path] is leaf for path, leaf in parts["0"]["live"].items())


def test_a_run_is_mixed_with_its_start_but_for_a_new_head(runs, tmp_path):
    experiment, parts = parts_of(runs)
    tried = soup.with_start(experiment, parts["0"])
    assert len(tried) == 12 and tried[-1].numbers["accuracy"] == max(each.numbers["accuracy"] for each in tried)
    start, path = flatten(experiment.variables["params"]), "backbone/block0/mlp/up/kernel"
    np.testing.assert_allclose(tried[0].weights["live"][path], start[path], rtol=1e-6)
    np.testing.assert_allclose(tried[10].weights["live"][path], parts["0"]["live"][path], rtol=1e-6)
    expected = 0.7 * np.asarray(start[path]) + 0.3 * np.asarray(parts["0"]["live"][path])
    np.testing.assert_allclose(tried[3].weights["live"][path], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(tried[0].weights["live"]["head/out/kernel"], parts["0"]["live"]["head/out/kernel"])
    assert main(["soup", f"--input={runs / '0'}", f"--workdir={tmp_path / 'wise'}"]) == 0


def test_runs_without_a_mean_are_refused(runs, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((runs / "0" / "config.json").read_text())
    config["config"]["task"]["pool"] = "cls"
    (other / "config.json").write_text(json.dumps(config))
    result = f"--workdir={tmp_path / 'soup'}"
    for arguments, message in (
        ([f"--input={runs / '0'}", f"--input={other}"], "config.task.pool: 'mean' → 'cls'"),
        ([f"--input={runs / '2'}"], "is no folder of a run"),
        ([], "No run is named"),
    ):
        assert main(["soup", result, *arguments]) == 2
        assert message in capsys.readouterr().err
    config["config"] |= {"strategy": {"lora": {"rank": 2}}}
    (other / "config.json").write_text(json.dumps(config))
    assert main(["soup", result, f"--input={other}"]) == 2
    assert "trained adapters, and the mean of their factors is not" in capsys.readouterr().err
    assert main(["soup", f"--workdir={runs / '0'}", f"--input={runs / '0'}"]) == 2
    assert "is one of the runs" in capsys.readouterr().err
