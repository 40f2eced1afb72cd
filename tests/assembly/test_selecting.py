"""What a selection reads and scores, on tiny BERTs; and the trap of ResNet-20 on real USPS digits."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.tiny import save_tiny_bert
from tljax.assembly import selecting
from tljax.assembly.baseline import raw_features
from tljax.assembly.depths import read_depths, spread_out
from tljax.assembly.experiment import build
from tljax.assembly.running import run_probe
from tljax.base.errors import UserError
from tljax.cli.config import load_config
from tljax.data.subsets import labels_of
from tljax.models.forward import forward
from tljax.train.probe import Probe, logistic, predict, standardized
from tljax.transferability.advice import STRATEGIES


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    found = load_config(folder / "config.py")
    return {**found, "select": {"scores": ["logme"]}}


def test_depths_are_means_over_tokens_and_the_top_is_what_the_head_reads(config, tmp_path, monkeypatch):
    task = {"name": "classification", "pool": "cls"}
    experiment, pretrained = selecting._built({**config, "task": task}, None)
    source, processor = experiment.sources["train"], experiment.processors["train"]
    found = read_depths(experiment, pretrained, source, processor, most=6)
    assert list(found.features) == ["embed", "block0", "block1"] and found.own is None
    record = processor.collate([processor.example(source.records[3])])
    outputs, _ = forward(pretrained.model, pretrained.variables, record, hidden_states=True)
    mask = record["attention_mask"][0].astype(bool)
    for depth, hidden in zip(("embed", "block0"), outputs["hidden_states"], strict=False):
        np.testing.assert_allclose(found.features[depth][3], np.asarray(hidden)[0][mask].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.features["block1"][3], outputs["hidden"][0, 0], atol=1e-5)
    # A second reading is of the store, and runs nothing.
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1
    monkeypatch.setattr("tljax.assembly.depths.collect", None)
    again = read_depths(experiment, pretrained, source, processor, most=6)
    assert all((again.features[depth] == x).all() for depth, x in found.features.items())
    with pytest.raises(TypeError):
        read_depths(experiment, pretrained, source, processor, most=2)


def test_depths_are_spread_out_and_the_top_is_one_of_them():
    names = [f"block{i}" for i in range(12)]
    assert spread_out(names, 1) == ("block11",) and spread_out(names, 20) == tuple(names)
    assert spread_out(names, 4) == ("block0", "block4", "block7", "block11")


def test_the_own_classifier_gives_the_scores_of_its_classes(tmp_path, config, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "train.npz", image=images, label=np.arange(40) % 4)
    model = {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}}
    config = {**config, "model": model, "task": {"name": "classification"}, "select": {"scores": [], "depths": 2}}
    config["data"] = {"train": {"source": f"npz:{tmp_path}/train.npz", "processor": {"size": 8}}}
    head = {"kernel": jax.numpy.ones((8, 3)) * jax.numpy.arange(3), "bias": jax.numpy.zeros(3)}

    def with_head(section, key):
        from tljax.assembly.model import make_model
        from tljax.models.heads import Classifier

        made, variables, *rest = make_model(section, key)
        variables = {**variables, "params": {**variables["params"], "head": {"out": head}}}
        return made._replace(head=Classifier(3, "mean")), variables, *rest

    monkeypatch.setattr(selecting, "make_model", with_head)
    found = selecting.select(config, None, say=print)
    own = found["checkpoints"][0]["own"]
    assert set(own) == {"leep", "nce"} and -np.log(4) - 1e-6 <= own["nce"] <= 0 and own["leep"] < 0
    assert found["checkpoints"][0]["depths"][0]["depth"] == "embed"
    assert found["raw"]["width"] == 8 * 8 * 3


def test_a_selection_reads_train_and_validation_alone(config, tmp_path):
    # Were the test opened, this would fail.
    data = {**config["data"], "test": {"source": f"csv:{tmp_path}/nowhere.csv"}}
    found = selecting.select({**config, "data": data}, None, say=print)
    assert found["held_out"] == "validation" and found["examples"] == {"train": 32, "validation": 8}
    assert found["per_class"] == 16 and found["classes"] == 2
    first = found["checkpoints"][0]
    assert set(first["ways"]) == set(STRATEGIES)
    assert first["ways"]["adapters"]["optim"] == {"learning_rate": 20 * 3e-3, "head_rate": 1 / 20}
    assert found["recommendation"]["sections"] == first["ways"][found["recommendation"]["strategy"]]
    assert json.loads(json.dumps(found)) == found
    build(selecting.laid_over(config, first["ways"]["last_stages"]))


def test_without_validation_train_is_divided(config):
    data = {"train": {key: x for key, x in config["data"]["train"].items() if key != "hold_out"}}
    found = selecting.select({**config, "data": data}, None, say=print)
    assert "cross-validation" in found["held_out"] and found["examples"] == {"train": 40}
    # Single words tell the classes: counts of words know everything.
    assert found["raw"]["accuracy"] > 0.9


def test_raw_words_are_weighted_by_train_alone(config):
    experiment = build({**config, "data": {k: v for k, v in config["data"].items() if k != "test"}})
    found = raw_features(experiment.sources, experiment.processors)
    assert found["train"].shape[0] == 32 and found["validation"].shape[0] == 8
    np.testing.assert_allclose(np.linalg.norm(found["train"], axis=1), 1, atol=1e-6)
    alone = raw_features({"train": experiment.sources["train"]}, experiment.processors)
    np.testing.assert_array_equal(alone["train"], found["train"])


def test_sources_names_and_sections_make_candidates(config):
    known = {
        "small": {"model": {"source": "a/b.th", "family": "cifar_resnet"}},
        "slow": {"optim": {"learning_rate": 1e-5}},
    }
    config = {**config, "select": {"checkpoints": known}}
    all_of_them = selecting.candidates(config, None)
    assert [each.name for each in all_of_them] == ["small", "slow"]
    laid = [selecting.laid_over(config, each.sections) for each in all_of_them]
    assert laid[0]["model"] == known["small"]["model"]
    assert laid[1]["optim"] == {**config["optim"], "learning_rate": 1e-5}
    config["model"] = {"source": "c", "sha256": "0", "processor": {"size": 8}}
    mixed = selecting.candidates(config, "small, x=d/e.th,f/g.th")
    assert [each.name for each in mixed] == ["small", "x", "g"]
    assert mixed[1].sections["model"] == {"source": "d/e.th", "processor": {"size": 8}}
    for wanted, message in (("smal", "Did you mean 'small'"), ("a/x.th,b/x.th", "two are called 'x'"), (",", "none")):
        with pytest.raises(UserError, match=message):
            selecting.candidates(config, wanted)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"depths": 0}, "whole number from 1"),
        ({"scores": ["logmee"]}, "Did you mean 'logme'"),
        ({"scores": ["leep"]}, "Accepted: gbc"),
        ({"strategies": {"adapter": {}}}, "Did you mean 'adapters'"),
        ({"checkpoint": {}}, "Did you mean 'checkpoints'"),
    ],
)
def test_a_wrong_section_is_refused(config, section, message):
    with pytest.raises(UserError, match=message):
        selecting.settings_of({"select": section})
    with pytest.raises(UserError, match=message):
        build({**config, "select": section})


def test_a_tie_is_broken_by_logme_and_a_lead_is_said(config, folder):
    save_tiny_bert(folder / "other", initializer_range=1.0)
    found = selecting.select(config, f"one={folder / 'bert'},two={folder / 'other'}", say=print)
    names = [each["name"] for each in found["checkpoints"]]
    assert sorted(names) == ["one", "two"] and found["recommendation"]["checkpoint"] == names[0]
    tops = [each["depths"][-1]["scores"]["logme"] for each in found["checkpoints"]]
    tied = "does not tell" in found["recommendation"]["reasons"][0]
    assert tops[0] >= tops[1] if tied else "points less" in found["recommendation"]["reasons"][0]


def test_the_distance_to_the_source_is_told_where_it_is_named(config, folder):
    own = {"select": {"source": {**config["data"]["train"]}}}
    config["select"] = {**config["select"], "depths": 1, "checkpoints": {"known": own, "unknown": {}}}
    found = {each["name"]: each for each in selecting.select(config, None, say=print)["checkpoints"]}
    # The source is the task's own data.
    assert 0 <= found["known"]["depths"][0]["distance"] < 0.5 and found["unknown"]["depths"][0]["distance"] is None
    assert "select" not in found["known"]["ways"]["fine_tune"]


@pytest.mark.long
def test_frozen_resnet20_features_lose_to_pixels_on_usps_and_the_adviser_says_so(data_dir, weights_dir):
    config = {**load_config(Path(__file__).parents[2] / "configs" / "resnet20_usps.py"), "mesh": {"data": 1}}
    # The trap, on the test split: logistic regression on frozen features, and on pixels.
    experiment = build({**config, "strategy": {"linear_probe": {}}, "probe": {"standardize": True}})
    frozen = run_probe(experiment, ["test"])[0]["metrics"]["test"]["accuracy"]
    pixels = raw_features(experiment.sources, experiment.processors)
    labels = {name: labels_of(source) for name, source in experiment.sources.items()}
    x, others = standardized(pixels["train"], pixels["test"])
    weights, _ = logistic(x, labels["train"], 10, Probe())[0]
    right = predict(weights, others).argmax(-1) == labels["test"]
    assert frozen < right.mean() - 0.005 and 0.88 < frozen < 0.92
    # The adviser sees training data alone.
    config["data"] = {"train": {**config["data"]["train"], "hold_out": 1000}}
    config["data"]["validation"] = {**config["data"]["train"], "take": "held_out"}
    config["select"] = {"examples": 3000, "scores": ["logme"]}
    found = selecting.select(config, None, say=print)
    advised, rows = found["recommendation"], found["checkpoints"][0]["depths"]
    assert (advised["rule"], advised["strategy"]) == ("raw inputs win", "fine_tune")
    best = max(max(row["accuracy"], row["neighbour"]) for row in rows)
    assert max(found["raw"]["accuracy"], found["raw"]["neighbour"]) > best + 0.01
