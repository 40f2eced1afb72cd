"""The examination of two domains at the end of a run: what it measures, what it warns of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax import domains
from tljax.assembly.domains import record_of, stage_features, warnings_of
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job
from tljax.base.types import Method
from tljax.methods.common import supervised_loss
from tljax.reports.run import write_run_report
from tljax.train.display import Display
from tljax.train.job import train
from tljax.train.records import plain


def watched(forward, task):
    """Supervised learning on `train`, with `target` as the other domain."""

    def loss(params, state, batches, rng, step):
        outputs, state = forward(params, state, task.inputs(batches["train"]), rng)
        return {"task": supervised_loss(task, outputs, batches["train"], name="watched")}, state, {}

    return Method(loss=loss, streams={"train": "labelled", "target": "unlabelled"}, domains=("train", "target"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder of a run of two steps, its config)."""
    folder, generator = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    entry = {}
    for name, light in (("train", 0), ("target", 130), ("test", 130)):
        images = generator.integers(0, 120, (40, 8, 8, 3)) + light
        np.savez(folder / f"{name}.npz", image=images.astype(np.uint8), label=np.arange(40) % 3)
        entry[name] = {"source": f"npz:{folder}/{name}.npz", "processor": {"size": 8}}
    config = {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "task": {"name": "classification", "init": "normal"},
        "method": {"name": "tests.assembly.test_domains:watched"},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "data": entry,
        "train": {"batch_size": 16, "steps": 2},
        "mesh": {"data": 1},
    }
    train(make_job(build(config)), folder / "run", display=Display())
    return folder / "run", config


def the_record(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records[-2:]] == ["domains", "end"]
    return records[-2]


def test_a_run_records_what_became_of_the_domains(ran):
    folder, config = ran
    record = the_record(folder)
    assert record["domains"] == ["train", "target"] and record["examples"] == [40, 40] and record["step"] == 2
    assert record["distances"]["start"]["proxy_a_distance"] == 2  # light and dark are told apart
    assert record["cka"]["stages"] == list(build(config).stages)
    for name in record["domains"]:
        assert all(0 <= value <= 1 + 1e-9 for value in record["cka"][name])
    assert record["entries"] == {}  # the head is new: there is no accuracy to compare with
    assert record["seconds"] > 0


def test_the_figures_of_the_start_are_those_of_the_model_as_it_was(ran):
    folder, config = ran
    experiment = build(config)
    job = make_job(experiment)
    first = job.examine(job.state)
    recorded = the_record(folder)
    for name in ("distances", "features"):
        assert set(first[name]) == set(recorded[name])
    for key, value in recorded["distances"]["start"].items():
        assert first["distances"]["start"][key] == pytest.approx(value, abs=1e-5)
        assert first["distances"]["end"][key] == pytest.approx(value, abs=1e-5)  # nothing has moved yet
    np.testing.assert_allclose(first["cka"]["train"], 1, atol=1e-6)
    assert min(recorded["cka"]["target"]) < 1 - 1e-6
    state, batches = job.state, job.batches(0)
    for _ in range(2):
        state, _ = job.step(state, next(batches))
    again = job.examine(state)
    assert again["cka"]["target"] == pytest.approx(recorded["cka"]["target"], abs=1e-6)
    assert again["predicted"] == recorded["predicted"]


def test_the_report_shows_them(ran):
    folder, _ = ran
    text = write_run_report(folder).read_text(encoding="utf8")
    for part in ("Domains: train and target", "proxy A-distance", "CKA between start and end", "most predicted class"):
        assert part in text


def found(feature, label, right=None):
    x = {"feature": feature, "stages": {"block0": feature}, "label": label}
    return x if right is None else {**x, "right": right}


def test_the_record_and_its_warnings():
    generator = np.random.default_rng(0)
    many, one = generator.normal(size=(50, 4)), np.zeros(50, int)
    fine = {
        "start": found(many, np.arange(50) % 3),
        "end": found(many @ generator.normal(size=(4, 4)), np.arange(50) % 3),
    }
    flat = np.outer(generator.normal(size=50), np.ones(4))
    worse = {
        "start": found(many, one, np.arange(50) < 45),
        "end": found(many, one, np.arange(50) < 20),
    }
    pair, classes = ("train", "target"), ("a", "b", "c")
    record = record_of({"train": fine, "target": fine}, pair, [], classes)
    assert warnings_of(record) == []
    assert record["distances"]["end"]["mmd2"] == domains.median_mmd(fine["end"]["feature"], fine["end"]["feature"])
    assert record["predicted"]["target"]["end"] == {"class": "a", "share": 0.34}
    broken = {"start": fine["start"], "end": found(flat, np.where(np.arange(50) < 47, 1, 2))}
    record = record_of({"train": fine, "target": broken, "test": worse}, pair, ["test"], classes)
    assert record["entries"]["test"]["start"] == 0.9 and record["entries"]["test"]["end"] == 0.4
    assert record["entries"]["test"]["standard_error"] == pytest.approx(np.sqrt(0.25 / 50))
    fell, alike, line = warnings_of(record)
    assert "on test the accuracy fell from 90.0 % before the run to 40.0 %" in fell
    assert "94.0 % of target" in alike and "one class, b" in alike and "along one line" in line
    half = {"start": fine["start"], "end": found(many, np.where(np.arange(50) < 30, 1, np.arange(50) % 10))}
    ten = {"start": fine["start"], "end": found(many, np.arange(50) % 10)}
    (share,) = warnings_of(record_of({"train": ten, "target": half}, pair, [], tuple("abcdefghij")))
    assert "64.0 % of target" in share and "of train at most 10.0 %" in share
    assert warnings_of(record_of({"train": fine, "target": half}, pair, [], classes)) == [], "a third of the source"
    still = {"start": fine["start"], "end": found(np.ones((50, 4), np.float32), np.arange(50) % 3)}
    record = record_of({"train": fine, "target": still}, pair, [], classes)
    assert record["cka"]["target"] == [None]
    (hardly,) = warnings_of(record)
    assert "hardly vary" in hardly
    json.dumps(plain(record))
    for right, count in ((24, 1), (25, 0)):
        source = {"start": fine["start"], "end": {**fine["end"], "right": np.arange(50) < right}}
        record = record_of({"train": source, "target": fine}, pair, [], classes)
        assert record["learnt"] == right / 50 and len(warnings_of(record)) == count
    (lost,) = warnings_of({**record, "learnt": 0.37})
    assert "only 37.0 % of train" in lost


def test_stages_stand_in_depth_order():
    x = {"feature": np.random.default_rng(0).normal(size=(9, 2)), "stages": {}}
    x["stages"] = dict.fromkeys(("block0", "block10", "block2", "embed"), x["feature"])
    both = {"start": x, "end": x}
    order = ("embed", "block0", "block2", "block10", "pooler")
    record = record_of({"a": both, "b": both}, ("a", "b"), [], (), order)
    assert record["cka"]["stages"] == ["embed", "block0", "block2", "block10"] and record["predicted"] == {}


def test_stages_are_averaged_over_what_counts():
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    mask = jnp.asarray([[1, 1, 0], [1, 0, 0]])
    outputs = {"hidden_states": (hidden, hidden), "encoder_hidden_states": (hidden[:, :, None],), "mask": mask}
    names = ("embed", "block0", "encoder/block0")
    features = jax.jit(lambda x: stage_features(x, names))(outputs)
    assert set(features) == set(names)
    np.testing.assert_allclose(features["embed"], [hidden[0, :2].mean(0), hidden[1, 0]], rtol=1e-5)
    np.testing.assert_allclose(features["encoder/block0"], hidden.mean(1), rtol=1e-5)
