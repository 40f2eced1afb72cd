"""Experiments on a tiny BERT: what is frozen stays, strategies compose, meshes agree, traps stay shut."""

import jax
import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job, training, training_batches, with_leaves
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.cli.config import load_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    path = save_config(folder / "config.py", save_tiny_bert(folder / "bert"), save_csv(folder / "data.csv"))
    return load_config(path)


def _steps(experiment, count=3):
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    for _ in range(count):
        state, metrics = job.step(state, next(batches))
    return state, metrics


@pytest.mark.parametrize(
    ("strategy", "live"),
    [
        ({"linear_probe": {}}, ("head/",)),
        ({"last_k": {"k": 1}}, ("backbone/block1/", "head/")),
        ({"freeze": {"rules": ["embed", "block0"]}}, ("backbone/block1/", "head/")),
        ({"freeze": {"rules": [["backbone/.*/bias|head/.*", "live"], ["backbone/.*", "frozen"]]}}, None),
        ({"fine_tune": {}, "layer_decay": {"rate": 0.5}}, ("backbone/", "head/")),
    ],
    ids=str,
)
def test_only_what_the_strategy_names_moves(config, strategy, live):
    experiment = build({**config, "strategy": strategy})
    state, _ = _steps(experiment)
    before = flatten(experiment.variables["params"])
    after = flatten(with_leaves(experiment, state.live, state.batch_stats)["params"])
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved
    if live is not None:
        assert all(path.startswith(live) for path in moved)
    else:
        assert all(path.endswith("bias") or path.startswith("head/") for path in moved)
    for path in before.keys() - moved:
        assert np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
    assert not any(path.startswith("backbone/pooler") for path in moved), "a mean-pooled task does not run the pooler"


def test_layer_decay_slows_the_lower_stages(config):
    experiment = build({**config, "strategy": {"layer_decay": {"rate": 0.5}}})
    rates = experiment.plan.rates
    lower, upper = (rates[f"backbone/{stage}/mlp/up/kernel"] for stage in ("block0", "block1"))
    assert lower == upper / 2 < 1


def test_scratch_starts_from_other_values_and_fine_tuning_from_the_checkpoints(config):
    tuned, scratch = (build({**config, "strategy": {name: {}}}) for name in ("fine_tune", "scratch"))
    one, two = (flatten(e.variables["params"]) for e in (tuned, scratch))
    assert one.keys() == two.keys()
    path = "backbone/block0/mlp/up/kernel"
    assert not np.allclose(one[path], two[path])
    assert build({**config, "seed": 1, "strategy": {"scratch": {}}}).variables["params"]["backbone"]["block0"]["mlp"][
        "up"
    ]["kernel"].sum() != pytest.approx(float(two[path].sum()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    generator = np.random.default_rng(0)
    np.savez(path, image=generator.integers(0, 256, (24, 8, 8, 3), np.uint8), label=np.arange(24) % 2)
    return {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "data": {"train": {"source": f"npz:{path}", "processor": {"size": 8}}},
        "train": {"batch_size": 8, "steps": 3},
        "mesh": {"data": 1},
    }


@pytest.mark.parametrize(
    ("strategy", "moving"),
    [
        ({"linear_probe": {}}, ()),
        ({"last_k": {"k": 1}}, ("stage2_block0",)),
        ({"fine_tune": {"batch_stats": "frozen"}}, ()),
        ({"linear_probe": {"batch_stats": "train"}}, ("embed", "stage0_block0", "stage1_block0", "stage2_block0")),
    ],
    ids=str,
)
def test_running_statistics_move_where_the_strategy_says(images, strategy, moving):
    experiment = build({**images, "strategy": strategy})
    before = flatten(experiment.variables["batch_stats"]["backbone"])
    before = {path: np.asarray(leaf).copy() for path, leaf in before.items()}
    state, _ = _steps(experiment)
    after = flatten(state.batch_stats["backbone"])
    moved = {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}
    assert moved == set(moving)


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_equals_one_device(config, mesh, tmp_path):
    checkpoint = save_tiny_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    still = {**config, "model": {"source": str(checkpoint)}}
    (one, first), (many, second) = (_steps(build({**still, "mesh": m})) for m in ({"data": 1}, mesh))
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-4)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(many)} == {4}
    for path, leaf in one.live.items():
        # Adam divides by the root of the second moment, which magnifies rounding where gradients vanish.
        np.testing.assert_allclose(leaf, many.live[path], atol=2e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_masters(config):
    experiment = build({**config, "train": {**config["train"], "compute_dtype": "bfloat16"}})
    parts = training(experiment)
    assert {leaf.dtype for leaf in parts.state.live.values()} == {np.dtype("float32")}
    _, metrics = _steps(experiment)
    assert np.isfinite(float(metrics["loss"]))
    half = build(
        {**config, "train": {**config["train"], "compute_dtype": "bfloat16"}, "strategy": {"linear_probe": {}}}
    )
    assert {leaf.dtype.name for leaf in training(half).frozen.values()} == {"bfloat16"}


def test_accumulated_parts_equal_the_whole_batch(config, tmp_path):
    checkpoint = save_tiny_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    still = {**config, "model": {"source": str(checkpoint)}}
    whole, _ = _steps(build(still), 1)
    parts, _ = _steps(build({**still, "train": {**config["train"], "accumulate": 4}}), 1)
    for path, leaf in whole.live.items():
        np.testing.assert_allclose(leaf, parts.live[path], atol=1e-4)


def test_rematerialised_stages_take_the_same_step_in_less_memory(config):
    found = {}
    for remat in ("none", "stages"):
        train = {**config["train"], "batch_size": 32, "remat": remat}
        parts = training(build({**config, "strategy": {"freeze": {"rules": ["embed"]}}, "train": train}))
        batches = next(training_batches(build({**config, "train": train}), 0))
        step = parts.step.lower(parts.state, parts.frozen, batches, parts.key).compile()
        memory = step.memory_analysis().temp_size_in_bytes
        found[remat] = (memory, step(parts.state, parts.frozen, batches, parts.key)[1])
    (whole, plain), (less, again) = found.values()
    assert less < 0.7 * whole
    assert plain["loss"] == again["loss"]
    np.testing.assert_allclose(plain["gradient_norm"], again["gradient_norm"], rtol=1e-5)


def test_no_step_is_compiled_twice(config):
    job = make_job(build(config))
    state, batches = job.state, job.batches(0)
    state, _ = job.step(state, next(batches))
    with jax.log_compiles(False), jax.no_tracing():
        for _ in range(3):
            state, _ = job.step(state, next(batches))
    assert int(state.step) == 4
    compiled = []
    listener = lambda name, *rest, **more: compiled.append("compile" in name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    with jax.no_tracing():
        found = job.flops()
    assert found > 0 and not any(compiled), "its FLOPs are those of the compiled one"
    jax.jit(lambda x: 3 * x)(1.0)
    jax.monitoring.unregister_event_duration_listener(listener)
    assert any(compiled), "the listener hears of programs that are"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "names no data"),
        ({"model": {}}, "needs a source"),
        ({"model": {"family": "bert", "variant": "bert-bse-uncased"}}, "Did you mean 'bert-base-uncased'"),
        ({"surprise": {}}, "config.surprise"),
        (
            {
                "data": {
                    "train": {"source": "csv:a.csv", "hold_out": 0.1},
                    "validation": {"source": "csv:a.csv", "hold_out": 0.2, "take": "held_out"},
                }
            },
            "different hold_out: 0.1 and 0.2",
        ),
        ({"optim": {"name": "adamw"}}, "learning_rate is required"),
    ],
    ids=str,
)
def test_mistakes_are_said(config, change, message):
    with pytest.raises(UserError, match=message):
        make_job(build({**config, **change}))


def test_a_strong_pull_keeps_leaves_where_they_were_and_mixing_changes_the_step_alone(config):
    def moved(**strategies):
        plain = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "schedule": "constant"}
        experiment = build({**config, "optim": plain, "strategy": {"fine_tune": {}, **strategies}})
        state, metrics = _steps(experiment, 6)
        before = flatten(experiment.variables["params"])
        path = "backbone/block0/mlp/up/kernel"
        return float(np.linalg.norm(state.live[path] - before[path])), float(metrics["loss"])

    free, loss = moved()
    held, _ = moved(l2_sp={"strength": 9.0})
    assert held < 0.5 * free, "each step the pull takes nine tenths of the way back"
    assert moved(l2_sp={"strength": 0.0, "head": 0.0}) == (free, loss)
    mixed, other = moved(mixout={"probability": 0.5})
    assert (mixed, other) != (free, loss) and np.isfinite(other)
