"""The stage cache on a tiny BERT: the same run as without it, from a store that nothing stale can pass for."""

import jax
import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.caching import with_cache
from tljax.assembly.experiment import build
from tljax.assembly.facts import digests
from tljax.assembly.phases import at
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.features.reading import Records
from tljax.models.forward import HEAD

LAST = {"last_k": {"k": 1}}
PROBE = {"linear_probe": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caching")
    save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "data.csv"))
    return folder


@pytest.fixture
def config(folder, tmp_path):
    config = load_config(folder / "config.py")
    text = {"max_length": 16, "lengths": (6, 16)}  # batches of several lengths
    data = {name: {**entry, "processor": text} for name, entry in config["data"].items()}
    return {**config, "data": data, "train": {**config["train"], "cache": str(tmp_path / "cache")}}


def run(experiment, steps=6):
    job = make_job(experiment)
    state, batches, losses = job.state, job.batches(0), []
    for done in range(steps):
        state, metrics = job.step(job.before(done, state), next(batches))
        losses.append(float(metrics["loss"]))
    numbers, _ = job.evaluations["test"](state)
    return state, losses, numbers


def assert_same_run(cached, config, *, close=2e-5):
    state, losses, numbers = run(cached)
    expected, expected_losses, expected_numbers = run(build(config))
    np.testing.assert_allclose(losses, expected_losses, rtol=close)
    for path, leaf in expected.live.items():
        np.testing.assert_allclose(state.live[path], leaf, atol=close, err_msg=path)
    assert numbers == pytest.approx(expected_numbers, abs=1e-5)


def test_examples_grouped_by_length_come_from_the_cache_in_the_same_batches(config):
    grouped = {**config["data"]["train"], "group_by_length": True}
    config = {**config, "data": {**config["data"], "train": grouped}, "strategy": LAST}
    assert_same_run(with_cache(build(config), say=print), {**config, "train": {**config["train"], "cache": "off"}})
    with pytest.raises(UserError, match="group_by_length asks for lengths"):
        with_cache(build({**config, "strategy": PROBE}), say=print)


@pytest.mark.parametrize(
    ("change", "start", "keys"),
    [
        ({"strategy": PROBE}, HEAD, ("pooled",)),
        ({"strategy": PROBE, "method": {"name": "supervised", "label_smoothing": 0.1}}, HEAD, ("pooled",)),
        ({"strategy": PROBE, "method": {"name": "mcc"}}, HEAD, ("hidden", "mask")),
        ({"strategy": LAST}, "block1", ("hidden", "mask")),
        ({"strategy": {"last_k": {"k": 2}}, "train": {"accumulate": 2}}, "block0", None),
    ],
    ids=["pooled vectors", "of a named method", "outputs", "upper block", "both blocks in parts"],
)
def test_a_run_from_the_cache_is_the_run_without_it(config, change, start, keys):
    config = {**config, **change, "train": {**config["train"], **change.get("train", {})}}
    if change.get("method", {}).get("name") == "mcc":
        config["data"] = {**config["data"], "target": config["data"]["test"]}
    said = []
    cached = with_cache(build(config), say=said.append)
    (view,) = cached.cached.values()
    assert view.model.start == start
    assert all(isinstance(source.records, Records) for source in view.sources.values())
    assert "stage cache of train" in " ".join(said)
    if keys is not None:
        assert view.processors["train"].fields.keys() == {*keys}
    assert_same_run(cached, config)
    assert digests(cached) == digests(build(config)), "the same run, to a checkpoint"
    again = []
    with_cache(build(config), say=again.append)
    assert all("found there" in line for line in again)


def test_the_cache_moves_down_as_stages_are_unfrozen(config):
    data = {**config["data"], "target": config["data"]["test"]}
    gradual = {"gradual_unfreezing": {"every": 1, "unit": "steps"}}
    chosen = {**config, "data": data, "method": {"name": "importance"}, "strategy": gradual}
    said = []
    cached = with_cache(build(chosen), say=said.append)
    starts = {start: view.model.start for start, view in cached.cached.items()}
    assert starts == {0: HEAD, 1: "block1", 2: "block0", 3: None}
    assert said[-1] == "no stage cache from step 3 on: embed, the lowest stage, trains."
    assert_same_run(cached, chosen, close=5e-5)
    here, there = make_job(cached).batches(0), make_job(cached).batches(2)
    batches = [next(here) for _ in range(4)]
    for batch in batches[2:]:
        jax.tree.map(np.testing.assert_array_equal, batch, next(there))


def test_versions_of_augmented_images_are_stored_and_come_in_turn(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", image=images, label=np.arange(24) % 2)
    part = {"source": f"npz:{tmp_path / 'data.npz'}"}
    changed = {**part, "augment": {"flip": True, "crop": 2}}
    config = {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}, "processor": {"size": 8}},
        "task": {"name": "classification", "init": "normal"},
        "strategy": {"last_k": {"k": 1}},
        "optim": {"name": "sgd", "learning_rate": 0.1, "schedule": "constant"},
        "data": {"train": {**changed, "versions": 2}, "test": part},
        "train": {"batch_size": 8, "steps": 9, "cache": str(tmp_path / "cache")},
    }
    said = []
    cached = with_cache(build(config), say=said.append)
    assert "storing" in said[0] and "(24 examples, 2 versions of each)" in said[0]
    _, losses, numbers = run(cached, 9)
    _, expected, others = run(build(config), 9)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert numbers == pytest.approx(others, abs=1e-5)
    anew = {**config, "data": {"train": changed, "test": part}}
    _, fresh, _ = run(build(anew), 9)
    assert fresh != expected, "others are drawn"
    with pytest.raises(UserError, match=r"augment changes each example at random; config\.data\.train\.versions"):
        with_cache(build(anew), say=print)
    other = []
    with_cache(build({**config, "seed": 1}), say=other.append)
    assert "storing" in other[0], "another seed draws other versions"


def test_bfloat16_is_half_as_large_and_rounds(config):
    whole = at(with_cache(build({**config, "strategy": LAST}), say=print), 0)
    config = {**config, "strategy": LAST, "train": {**config["train"], "cache_dtype": "bfloat16"}}
    half = at(with_cache(build(config), say=print), 0)
    for experiment, size in ((whole, 4), (half, 2)):
        assert experiment.processors["train"].fields["hidden"].dtype == {4: "float32", 2: "bfloat16"}[size]
    a, b = (experiment.sources["train"].records[3]["carry"]["hidden"] for experiment in (whole, half))
    assert b.dtype == np.float32 and not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=2**-8)


@pytest.mark.parametrize("what", ["a text", "a weight", "the processor", "the stage", "nothing that counts"])
def test_what_changes_makes_another_store(folder, config, tmp_path, what):
    config = {**config, "strategy": LAST}
    with_cache(build(config), say=print)
    data = {name: dict(entry) for name, entry in config["data"].items()}
    if what == "a text":
        changed = tmp_path / "changed.csv"
        lines = (folder / "data.csv").read_text().splitlines()
        lines[20] = lines[20].replace(lines[20].split(",")[0], "calm loud")
        changed.write_text("\n".join(lines) + "\n")
        for entry in data.values():
            entry["source"] = f"csv:{changed}"
    elif what == "a weight":
        config = {**config, "model": {"source": str(save_tiny_bert(tmp_path / "other", initializer_range=0.03))}}
    elif what == "the processor":
        data = {name: {**entry, "processor": {"max_length": 5, "lengths": ()}} for name, entry in data.items()}
    elif what == "the stage":
        config = {**config, "strategy": {"last_k": {"k": 2}}}
    else:
        config = {**config, "optim": {**config["optim"], "learning_rate": 1.0}}
    said = []
    with_cache(build({**config, "data": data}), say=said.append)
    train = next(line for line in said if line.startswith("stage cache of train"))
    assert ("found there" in train) == (what == "nothing that counts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": {"fine_tune": {}}}, "embed, the lowest stage, trains"),
        ({"strategy": PROBE, "method": {"name": "supervised", "mixup": 0.2}}, "the method changes the inputs"),
        ({"strategy": LAST, "augment": {"drop": 0.1}}, r"config\.data\.train\.augment changes each example at random"),
    ],
    ids=str,
)
def test_what_cannot_be_cached_is_said(config, change, message):
    change = dict(change)
    if augment := change.pop("augment", None):
        change["data"] = {**config["data"], "train": {**config["data"]["train"], "augment": augment}}
    with pytest.raises(UserError, match=message):
        with_cache(build({**config, **change}), say=print)
    said, automatic = [], {**config, **change, "train": {**config["train"], "cache": "auto"}}
    assert not with_cache(build(automatic), say=said.append).cached
    assert said[0].startswith("no stage cache: ")


def test_auto_weighs_the_size_and_the_passes(config):
    def said(**changes):
        lines = []
        settings = {**config["train"], "cache": "auto", **changes}
        with_cache(build({**config, "strategy": LAST, "train": settings}), say=lines.append)
        return lines[0]

    assert "cache_limit allows 0.0" in said(cache_limit=1e3)
    assert "read 0.5 times" in said(steps=2)


def test_the_command_trains_from_the_cache(folder, tmp_path, capsys):
    arguments = [
        f"--config={folder / 'config.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.strategy={'last_k': {'k': 1}}",
    ]
    assert main(["train", *arguments, f"--config.train.cache={str(tmp_path / 'cache')!r}"]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "stage cache of validation" in shown
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert not any(path.name.startswith("writing") for path in (tmp_path / "cache").iterdir())
