"""Eight devices train as one does, on any mesh; states go from mesh to mesh; what is split is nowhere whole."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.assembly.on_meshes import FAMILIES, MESHES, OTHERS, STRATEGIES
from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.phases import split_leaves
from tljax.assembly.placing import Placement
from tljax.assembly.running import evaluate_as_is, placed, predict_records
from tljax.assembly.training import make_job, trained_variables
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.cli.config import load_config
from tljax.models.layers import BatchNorm
from tljax.sharding import batch_sharding, make_mesh, replicated
from tljax.train.display import Display
from tljax.train.job import train

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (simulated) devices")
ROUNDING = 2e-5
"""What is left of a number, or of the way that training went, where sums are taken in another order."""
QUERY = "backbone/block0/attention/query/kernel"


def on_eight_devices(folder: Path, *what: str) -> dict:
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {**os.environ, "XLA_FLAGS": " ".join([*flags, "--xla_force_host_platform_device_count=8"])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.assembly.on_meshes", str(folder), *what],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_equal_but_for_rounding(found: dict) -> None:
    bounds = {"loss": ROUNDING, "gradient_norm": ROUNDING, "leaves": ROUNDING, "own": 100 * ROUNDING}
    faults = [
        f"{name}: {key} differs by {case[key]:.1e} (worst: {case['worst']})"
        for name, case in found.items()
        for key, bound in bounds.items()
        if not case[key] <= bound
    ]
    assert not faults, "\n".join(faults)
    assert all(case["moved"] > 1e-2 for case in found.values()), "nothing was trained"


def assert_restored(found: dict) -> None:
    for name, case in found.items():
        assert case["bits"] and case["back"] and case["digests"] and not case["misplaced"], name
        assert case.get("loss", 0.0) <= ROUNDING, name
    assert all(case["spread"] for name, case in found.items() if not name.endswith((":one", ":data")))


SOME = ("bert:lp_ft:1:all", "resnet:fine_tune:2:all")


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    return on_eight_devices(tmp_path_factory.mktemp("eight"), *SOME, "checkpoints:fsdp:one,four,square,fsdp")


def test_some_runs_on_eight_devices_equal_one_device(some):
    found = {name: some[name] for name in SOME}
    assert_equal_but_for_rounding(found)
    assert all(case["spread"] for case in found.values())
    assert found[SOME[1]]["statistics"] > 1e-2, "the running statistics did not move"


def test_a_state_of_eight_devices_is_restored_on_others_and_comes_back(some):
    found = {name: case for name, case in some.items() if name not in SOME}
    assert {case["devices"] for case in found.values()} == {1, 4, 8}
    assert_restored(found)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_every_strategy_on_every_mesh_equals_one_device(family, tmp_path):
    found = on_eight_devices(tmp_path, f"{family}:*:*:*")
    assert len(found) == (len(MESHES) + 1) * sum(family in families for families, _ in STRATEGIES.values())
    assert_equal_but_for_rounding(found)


@pytest.mark.long
def test_a_state_of_any_mesh_is_restored_on_any_other(tmp_path):
    found = on_eight_devices(tmp_path, *(f"checkpoints:{origin}:*" for origin in ("one", "fsdp", "all", "columns")))
    assert len(found) == 4 * len(OTHERS)
    assert_restored(found)


def test_batch_norm_in_training_normalises_by_the_batch_of_all_devices():
    x = np.random.default_rng(0).normal(size=(8, 3, 3, 5)) + np.arange(8)[:, None, None, None]
    mesh, layer = make_mesh(data=4), BatchNorm()
    single = x.astype(np.float32)
    variables = jax.device_put(layer.init(jax.random.key(0), single, train=False), replicated(mesh))
    batch = jax.device_put(single, batch_sharding(mesh))
    run = jax.jit(lambda variables, x: layer.apply(variables, x, train=True, mutable="batch_stats"))
    y, updates = run(variables, batch)
    mean, variance, count = x.mean((0, 1, 2)), x.var((0, 1, 2)), x[..., 0].size
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * variance * count / (count - 1), rtol=1e-5)
    assert (x.reshape(4, -1, 5).var(1).mean(0) < variance / 2).all(), "a device's own variance would be another one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "data.csv"))
    return folder


@pytest.fixture
def config(folder):
    return {**load_config(folder / "config.py"), "mesh": {"fsdp": 4}}


def test_nothing_that_is_split_is_ever_whole_on_a_device_of_the_mesh(config, monkeypatch):
    """The third device plays the host's memory, the first two the accelerators."""
    monkeypatch.setattr("tljax.sharding.host_device", lambda: jax.devices()[3])
    strategy = {"lp_ft": {"probe": 1, "unit": "steps"}, "ema": {}, "l2_sp": {}}
    gc.collect()
    others = {id(x) for x in jax.live_arrays()}
    experiment = build({**config, "strategy": strategy, "mesh": {"fsdp": 2}})
    for leaf in jax.tree.leaves((experiment.variables["params"], experiment.variables["batch_stats"])):
        assert not isinstance(leaf, jax.Array) or leaf.devices() == {jax.devices()[3]}
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    state, _ = job.step(state, next(batches))
    state = job.before(1, state)
    state, _ = job.step(state, next(batches))
    split = {x.shape for path, x in state.live.items() if not x.sharding.is_fully_replicated}
    assert (16, 16) in split and (16, 24) in split and (32, 16) in split
    gc.collect()
    mine = [x for x in jax.live_arrays() if id(x) not in others]
    whole = [x for x in mine if x.shape in split and x.sharding.is_fully_replicated]
    assert whole and {device for x in whole for device in x.devices()} == {jax.devices()[3]}
    moments = jax.tree.leaves(state.optimizer)
    assert sum(x.shape in split and not x.sharding.is_fully_replicated for x in moments) >= 2 * len(split)


@pytest.mark.long
def test_a_whole_run_works_where_the_leaves_come_from_the_host(config, monkeypatch, tmp_path):
    expected = train(make_job(build(config)), tmp_path / "plain", display=Display())
    monkeypatch.setattr("tljax.sharding.host_device", lambda: jax.devices()[3])
    experiment = build(config)
    found = train(make_job(experiment), tmp_path / "host", display=Display())
    for path, leaf in expected.state.live.items():
        assert np.asarray(leaf).tobytes() == np.asarray(found.state.live[path]).tobytes()
    variables, _ = trained_variables(experiment, tmp_path / "host", say=print)
    experiment = experiment._replace(variables=variables)
    numbers, _, _ = evaluate_as_is(experiment, "test")
    assert numbers["accuracy"] == pytest.approx(found.metrics["test"]["accuracy"])
    assert predict_records(experiment, [{"id": "1", "text": "red warm"}])[0]["label"] in ("sad", "glad")


def test_optimizer_state_of_leaves_that_join_is_made_in_shards(config):
    experiment = build({**config, "strategy": {"lp_ft": {"probe": 1, "unit": "steps"}}})
    job = make_job(experiment)
    state = job.before(1, job.state)
    kept = [(keys[-1].key, x) for keys, x in jax.tree_util.tree_leaves_with_path(state.optimizer) if x.ndim == 2]
    assert len(kept) == 2 * sum(x.ndim == 2 for x in state.live.values())
    assert all(x.sharding == state.live[path].sharding for path, x in kept)
    assert state.live[QUERY].sharding.shard_shape((16, 16)) == (4, 16)


def test_frozen_leaves_are_split_or_repeated_and_take_the_compute_dtype(config):
    half = {**config, "train": {**config["train"], "compute_dtype": "bfloat16"}, "strategy": {"last_k": {"k": 1}}}
    experiment, sizes = build({**half, "mesh": {"fsdp": 4, "frozen": "replicated"}}), {}
    for frozen in ("sharded", "replicated"):
        live, leaves = split_leaves(experiment._replace(placement=Placement(frozen=frozen)))
        assert {x.dtype.name for x in leaves.values()} == {"bfloat16"}
        assert {x.dtype.name for x in live.values()} == {"float32"}
        assert leaves[QUERY].sharding.is_fully_replicated == (frozen == "replicated")
        assert not live[QUERY.replace("block0", "block1")].sharding.is_fully_replicated
        sizes[frozen] = sum(x.addressable_shards[0].data.nbytes for x in leaves.values())
    assert experiment.placement.frozen == "replicated"
    assert sizes["sharded"] < 0.4 * sizes["replicated"]


@pytest.mark.long
def test_frozen_leaves_that_are_repeated_train_the_others_as_those_that_are_split(config):
    losses = []
    for frozen in ("sharded", "replicated"):
        job = make_job(build({**config, "strategy": {"last_k": {"k": 1}}, "mesh": {"fsdp": 4, "frozen": frozen}}))
        state, batches = job.state, job.batches(0)
        for _ in range(3):
            state, metrics = job.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(*losses, rtol=ROUNDING)


def test_the_rules_of_a_user_come_before_those_of_the_family(config):
    rules = ((".*/query/kernel", (None, "fsdp")), ("head/out/kernel", ["fsdp"]))
    experiment = build({**config, "mesh": {"fsdp": 4, "rules": rules}})
    live, _ = split_leaves(experiment)
    assert live[QUERY].sharding.shard_shape((16, 16)) == (16, 4)
    assert live[QUERY.replace("query", "key")].sharding.shard_shape((16, 16)) == (4, 16)
    assert live["head/out/kernel"].sharding.shard_shape((16, 2)) == (4, 2)
    params, _ = placed(experiment)
    assert flatten(params)[QUERY].sharding == live[QUERY].sharding


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"rules": ((".*/querry/kernel", ("fsdp",)),)}, r"config.mesh.rules.*\n.*'.*/querry/kernel' matches no path"),
        ({"rules": ((".*/kernel", ()), (".*/query/kernel", ("fsdp",)))}, "query/kernel' decides nothing"),
        ({"rules": ((".*/query/kernel", ("fspd",)),)}, "no axis is called 'fspd'. Did you mean 'fsdp'"),
        ({"rules": ((".*/query/kernel", ("fsdp", "fsdp")),)}, "names fsdp twice"),
        ({"rules": ((".*/query/bias", ("fsdp", None)),)}, "too many entries"),
        ({"rules": ((".*/query/kernel", "fsdp"),)}, "is no pair of an expression and one entry for each dimension"),
        ({"frozen": "shared"}, "config.mesh.frozen is 'shared'. Did you mean 'sharded'"),
        ({"frosen": "sharded"}, "config.mesh.frosen is no axis and no option. Did you mean 'frozen'"),
        ({"dcn": {"fsdp": 2}}, "1 slices, told apart by their process"),
    ],
    ids=str,
)
def test_a_section_mesh_that_does_not_fit_is_refused(config, mesh, message):
    with pytest.raises(UserError, match=message):
        build({**config, "mesh": {"fsdp": 4, **mesh}})
