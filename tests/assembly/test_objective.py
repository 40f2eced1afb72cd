"""What a method is given: several streams, views, surveys of the data, a teacher; what is refused before it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job, training_batches
from tljax.base.errors import UserError
from tljax.base.types import Loss, Method, Survey
from tljax.methods.common import moving_average, replace_leaves, supervised_loss, together

HERE = "tests.assembly.test_objective"


def watcher(forward, task):
    """Learns from `train`, looks at `target`; keeps a slow copy of the live leaves and numbers of every example."""

    def loss(params, state, batches, rng, step):
        source, target = batches["train"], batches["target"]
        assert "targets" in source and "targets" not in target
        assert "views" not in source and "inputs" not in target and set(target["views"]) == {"weak", "strong"}
        inputs = [source["inputs"], target["views"]["weak"], target["views"]["strong"]]
        (known, weak, strong), state = together(forward, params, state, inputs, rng)
        teacher, _ = forward(
            replace_leaves(params, state["method"]["teacher"]), state, target["views"]["weak"], rng, train=False
        )
        gap = jnp.mean(jnp.square(strong["logits"] - jax.lax.stop_gradient(teacher["logits"])))
        seen = state["method"]["seen"].at[target["index"]].add(1)
        found = {"task": supervised_loss(task, known, source, name="watcher"), "gap": Loss(0.0 * gap, 1.0)}
        metrics = {"apart": jnp.mean(jnp.abs(weak["logits"] - strong["logits"]))}
        return found, {**state, "method": {**state["method"], "seen": seen}}, metrics

    def start(state, live, counts):
        zeros = jnp.zeros(counts["target"])
        return {"teacher": live, "seen": zeros.astype(jnp.int32), "score": zeros, "surveys": jnp.zeros((), jnp.int32)}

    def after_step(state, live, step):
        return {**state, "teacher": moving_average(state["teacher"], live, 0.9)}

    def read(params, state, batch):
        return {"norm": jnp.sum(jnp.abs(batch["inputs"]["pixel_values"]), axis=(1, 2, 3))}

    def digest(state, found):
        assert "targets" not in found["target"]
        return {**state, "score": found["target"]["norm"], "surveys": state["surveys"] + 1}

    return Method(
        loss=loss,
        start=start,
        after_step=after_step,
        streams={"train": "labelled", "target": "unlabelled"},
        views={"target": ("weak", "strong")},
        survey=Survey(("target",), read, digest),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("streams"), np.random.default_rng(0)
    for name, count in (("source", 24), ("target", 10), ("test", 6)):
        images = generator.integers(0, 256, (count, 8, 8, 3), np.uint8)
        np.savez(folder / f"{name}.npz", image=images, label=np.arange(count) % 2)
    entry = {
        name: {"source": f"npz:{folder / name}.npz", "processor": {"size": 8}} for name in ("source", "target", "test")
    }
    views = {"weak": {"flip": True}, "strong": {"flip": True, "crop": 3}, "nobody's": {}}
    return {
        "seed": 3,
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "method": {"name": f"{HERE}:watcher"},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "data": {
            "train": entry["source"],
            "target": {**entry["target"], "views": views, "batch_size": 4},
            "test": entry["test"],
        },
        "train": {"batch_size": 8, "steps": 6},
        "mesh": {"data": 1},
    }


def test_a_method_trains_on_its_streams(config):
    experiment = build(config)
    job = make_job(experiment)
    assert list(job.evaluations) == ["test"]  # a stream is not evaluated
    state, batches = job.before(0, job.state), job.batches(0)
    first = {path: np.array(leaf) for path, leaf in state.live.items()}
    indices = []
    for step in range(4):
        state = job.before(step, state)
        batch = next(batches)
        assert batch["target"]["weight"].shape == (4,) and batch["train"]["weight"].shape == (8,)
        indices += batch["target"]["index"].tolist()
        state, metrics = job.step(state, batch)
    assert metrics["metrics"]["apart"] > 0  # in the first step the head is zero
    np.testing.assert_array_equal(state.method["seen"], np.bincount(indices, minlength=10))
    assert state.method["surveys"] == 3  # the one above, and at the steps 0 and 3: an epoch of `train` has three
    norms = [np.abs(row["inputs"]["pixel_values"]).sum() for row in _alone(experiment, "target")]
    np.testing.assert_allclose(state.method["score"], norms, rtol=1e-5)
    for path, leaf in state.method["teacher"].items():
        assert (
            np.abs(np.asarray(leaf) - first[path]).max()
            <= np.abs(np.asarray(state.live[path]) - first[path]).max() + 1e-6
        )


def test_an_entry_that_is_none_is_left_out(config):
    data = {**config["data"], "test": None}
    assert list(build({**config, "data": data}).sources) == ["train", "target"]
    with pytest.raises(UserError, match="names no data"):
        build({**config, "data": dict.fromkeys(data)})


def _alone(experiment, name):
    source, processor = experiment.sources[name], experiment.processors[name]
    return [{"inputs": processor.example(source.records[i], None)} for i in range(len(source.records))]


def test_streams_do_not_share_their_order_and_do_not_depend_on_the_start(config):
    experiment = build(config)
    whole, later = training_batches(experiment, 0), training_batches(experiment, 3)
    batches = [next(whole) for _ in range(5)]
    for wanted, found in zip(batches[3:], later, strict=False):
        jax.tree.map(np.testing.assert_array_equal, wanted, found)
    same = {
        **config,
        "data": {**config["data"], "target": {**config["data"]["train"], "views": config["data"]["target"]["views"]}},
    }
    batch = next(training_batches(build(same), 0))
    assert batch["train"]["index"].tolist() != batch["target"]["index"].tolist()
    np.testing.assert_array_equal(batches[0]["train"]["index"], batch["train"]["index"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"watcher.*cannot be used(.|\n)*config.data.target \(unlabelled\)(.|\n)*train, test"),
        ({"target": {"views": {"weak": {}}}}, r"config.data.target.views has no strong; it has: weak"),
        ({"target": {"batch_size": 3}, "accumulate": 2}, r"config.data.target.batch_size is 3"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(config, changes, message):
    changes = dict(changes)
    train = {**config["train"], "accumulate": changes.pop("accumulate", 1)}
    change = lambda entry, more: None if more is None else {**entry, **more}  # noqa: E731
    data = {name: change(entry, changes.get(name, {})) for name, entry in config["data"].items()}
    with pytest.raises(UserError, match=message):
        build({**config, "data": data, "train": train})


def follower(forward, task, *, teacher):
    """Follows the logits of a teacher."""

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        outputs, state = forward(params, state, batch["inputs"], rng)
        wanted = teacher(params, batch["inputs"])["pooled"]
        gap = jnp.sum(jnp.square(task.feature(outputs) - wanted), axis=-1)
        return {"gap": Loss(jnp.sum(gap), jnp.sum(batch["weight"]))}, state, {}

    return Method(loss=loss)


def test_a_teacher_is_a_frozen_part_of_the_tree(tmp_path):
    student, teacher = save_tiny_bert(tmp_path / "student"), save_tiny_bert(tmp_path / "teacher", num_hidden_layers=1)
    processor = dict(max_length=16, lengths=(16,))
    entry = dict(
        source=f"csv:{save_csv(tmp_path / 'data.csv')}", columns=dict(text="review", label="mood"), processor=processor
    )
    config = {
        "model": {"source": str(student)},
        "task": {"name": "classification", "pool": "mean"},
        "method": {"name": f"{HERE}:follower", "teacher": {"source": str(teacher)}},
        "strategy": {"freeze": {"rules": ["embed"]}},
        "optim": {"name": "adamw", "learning_rate": 1e-2},
        "data": {"train": entry},
        "train": {"batch_size": 8, "steps": 12},
        "mesh": {"data": 1},
    }
    experiment = build(config)
    assert not any(path.startswith("teacher/") for path in experiment.plan.live(0))
    job = make_job(experiment)
    state, batches, losses = job.state, job.batches(0), []
    for _ in range(12):
        state, metrics = job.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    other = {**config, "method": {**config["method"], "teacher": {"source": str(student)}}}
    assert make_job(build(other)).digests["pretrained"] != job.digests["pretrained"]
