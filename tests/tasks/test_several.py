"""Several tasks on one backbone: heads, what a step reads of each, whole runs, export of one head, what is refused."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import WORDS, save_csv, save_tiny_bert, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.reading import reading_of, share_out
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.assembly.sections import Entry
from tljax.assembly.training import inspect_experiment, make_job, training_batches
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.base.types import Method
from tljax.checkpoints.save import save_pretrained
from tljax.models.heads import Classifier, Several
from tljax.tasks import TABLE
from tljax.tasks.several import several, with_one_head
from tljax.tasks.spec import TaskSpec
from tljax.train.settings import Settings


def test_heads_add_what_each_would_add_alone():
    outputs = {"hidden": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)}
    outputs["mask"] = jnp.asarray([[1, 1, 0], [1, 1, 1]])
    one, two = Classifier(3, "mean", start="normal"), Classifier(2, "cls", start="normal")
    head = Several((("kind", one), ("mood", two)))
    params = head.init(jax.random.key(0), outputs)["params"]
    assert set(flatten(params)) == {f"{name}/out/{leaf}" for name in ("kind", "mood") for leaf in ("kernel", "bias")}
    made = head.apply({"params": params}, outputs)
    assert set(made) == {"hidden", "mask", "heads"} and set(made["heads"]["kind"]) == {"logits"}
    for name, alone in (("kind", one), ("mood", two)):
        expected = alone.apply({"params": params[name]}, outputs)["logits"]
        np.testing.assert_array_equal(made["heads"][name]["logits"], expected)
    assert hash(head) == hash(Several((("kind", one), ("mood", two))))


# --- what a step reads


def _reading(shares, counts, size=32, unit=1, **given):
    entries = {name: Entry("x", batch_size=given.get(name)) for name in counts}
    mixing = None if shares is None else lambda counts: {n: shares[n] / sum(shares[m] for m in counts) for n in counts}
    method = Method(loss=None, streams=dict.fromkeys(counts, "labelled"), mixing=mixing)
    return reading_of(method, Settings(batch_size=size), entries, counts, unit=unit)


def test_batches_are_shared_out_as_the_method_mixes():
    counts = {"train_a": 100, "train_b": 900}
    reading = _reading({"train_a": 0.1, "train_b": 0.9}, counts)
    assert reading.sizes == {"train_a": 3, "train_b": 29} and (reading.records, reading.examples) == (1000, 32)
    assert reading.timed(Settings(batch_size=7, epochs=2)).total_steps(reading.records) == 63
    assert _reading({"train_a": 0.1, "train_b": 0.9}, counts, unit=4).sizes == {"train_a": 4, "train_b": 28}
    assert _reading({"train_a": 0.1, "train_b": 0.9}, counts, train_a=16).sizes == {"train_a": 16, "train_b": 16}
    plain = _reading(None, {"train": 50, "target": 70}, size=10, target=20)
    assert plain.sizes == {"train": 10, "target": 20} and (plain.records, plain.examples) == (50, 10)
    with pytest.raises(UserError, match="each needs at least 16"):
        _reading({"train_a": 0.5, "train_b": 0.5}, counts, size=16, unit=16)


def test_sharing_out_is_whole_and_near():
    generator = np.random.default_rng(0)
    for _ in range(50):
        shares = dict(enumerate(generator.dirichlet(np.full(6, 0.3))))
        given = share_out(shares, 40)
        assert sum(given.values()) == 40 and min(given.values()) >= 1
        assert all(number == 1 or number < 40 * shares[name] + 1 for name, number in given.items())
    assert share_out({"a": 0.25, "b": 0.75}, 8) == {"a": 2, "b": 6}


# --- whole runs


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    save_tiny_bert(folder / "bert", **still)
    save_csv(folder / "moods.csv", 48)
    generator = np.random.default_rng(1)
    with (folder / "warmth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "score"])
        for i in range(24):
            words = [*generator.choice(WORDS[5:], size=3), ("cold", "warm")[i % 2]]
            writer.writerow([" ".join(generator.permutation(words)), 2.0 * (i % 2) - 1.0])
    moods = dict(source=f"csv:{folder}/moods.csv", columns=dict(text="review", label="mood"), task="mood")
    warmth = dict(source=f"csv:{folder}/warmth.csv", task="warmth")
    cut = dict(processor=dict(max_length=16, lengths=(16,)))
    return {
        "model": {"source": str(folder / "bert")},
        "task": {
            "name": "several",
            "tasks": {"mood": {"pool": "mean"}, "warmth": {"name": "regression", "pool": "cls"}},
        },
        "method": {"name": "multitask"},
        "optim": {"name": "adamw", "learning_rate": 5e-3, "schedule": "constant"},
        "data": {
            "train_mood": {**moods, **cut},
            "train_warmth": {**warmth, **cut},
            "test_mood": {**moods, **cut},
            "test_warmth": {**warmth, **cut},
        },
        "train": {"batch_size": 12, "epochs": 2, "eval_batch_size": 8},
        "mesh": {"data": 1},
    }


@pytest.fixture(scope="module")
def trained(config):
    method = {"name": "multitask", "weighting": "uncertainty", "gradients": "pcgrad", "variance_rate": 2.0}
    return train_steps({**config, "method": method}, 60)


def test_a_run_learns_every_task_and_evaluates_each_by_its_own_metrics(config, trained):
    experiment, losses = trained
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert experiment.reading.sizes == {"train_mood": 8, "train_warmth": 4}
    assert {"head/mood/out/kernel", "head/warmth/out/kernel", "method/log_variance/mood"} <= set(
        flatten(experiment.variables["params"])
    )
    assert experiment.variables["params"]["method"]["log_variance"]["mood"] != 0
    mood, tables, predictions = evaluate_as_is(experiment, "test_mood")
    assert mood["accuracy"] > 0.9 and tables["classes"] == ["glad", "sad"] and len(predictions["label"]) == 48
    warmth, _, _ = evaluate_as_is(experiment, "test_warmth")
    assert warmth["rmse"] < 0.7, "the labels are −1 and 1"
    job = make_job(experiment)
    assert job.steps == 12 == job.interval * 2 and list(job.evaluations) == ["test_mood", "test_warmth"]
    assert job.evaluations["test_mood"](job.state)[0]["accuracy"] == mood["accuracy"]
    assert job.evaluations["test_warmth"](job.state)[0]["rmse"] == pytest.approx(warmth["rmse"], rel=1e-5)


def test_texts_are_predicted_for_by_every_task(trained):
    experiment, _ = trained
    records = [experiment.sources["test_mood"].records[i] for i in range(6)]
    lines = predict_records(experiment, records)
    _, _, moods = evaluate_as_is(experiment, "test_mood")
    assert [line["mood"]["label"] for line in lines] == [("glad", "sad")[k] for k in moods["label"][:6]]
    assert [line["text"] for line in lines] == [record["text"] for record in records]
    records = [experiment.sources["test_warmth"].records[i] for i in range(6)]
    _, _, warmth = evaluate_as_is(experiment, "test_warmth")
    scores = [line["warmth"]["score"] for line in predict_records(experiment, records)]
    np.testing.assert_allclose(scores, warmth["score"][:6], atol=1e-5)


def test_one_head_is_exported_and_several_are_refused(trained, tmp_path):
    from tljax.checkpoints.load import load_pretrained
    from tljax.models.forward import forward

    experiment, _ = trained
    with pytest.raises(UserError, match=r"heads mood, warmth(.|\n)*with_one_head"):
        save_pretrained(experiment.model, experiment.variables, tmp_path / "both")
    model, variables = with_one_head(experiment.model, experiment.variables, "mood")
    processor = experiment.readers["train_mood"]
    save_pretrained(model, variables, tmp_path / "mood", processor=processor, classes=("glad", "sad"))
    again, loaded, _ = load_pretrained(tmp_path / "mood")
    batch = next(training_batches(experiment, 0))["train_mood"]
    ours, _ = forward(experiment.model, experiment.variables, batch["inputs"])
    theirs, _ = forward(
        again._replace(head=model.head),
        {**loaded, "params": {**variables["params"], "backbone": loaded["params"]["backbone"]}},
        batch["inputs"],
    )
    np.testing.assert_allclose(ours["heads"]["mood"]["logits"], theirs["logits"], atol=1e-5)
    with pytest.raises(UserError, match="no head called 'moods'; its heads are: mood, warmth"):
        with_one_head(experiment.model, experiment.variables, "moods")


def test_the_validation_of_one_task_chooses_and_the_whole_is_inspected(config):
    data = {**config["data"], "validation": config["data"]["test_warmth"]}
    experiment = build({**config, "data": data})
    job = make_job(experiment)
    assert job.main == ("rmse", "min") and next(iter(job.evaluations)) == "validation"
    found = inspect_experiment(experiment)
    assert found["flops"]["step"] > 2 * found["flops"]["forward"]


# --- what is refused


def _without(data, name, **more):
    return {**{key: entry for key, entry in data.items() if key != name}, **more}


MOOD = {"mood": {"pool": "mean"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"method": {"name": "supervised"}}, "no `train`, which the method supervised reads"),
        (lambda c: {"task": {"name": "classification"}}, "config.task is one task, 'classification'"),
        (lambda c: {"task": {"name": "several", "tasks": MOOD}}, r"test_warmth.task is 'warmth'. Accepted: mood"),
        (lambda c: {"task": {"name": "several", "tasks": {}}}, "it is empty"),
        (
            lambda c: {"data": _without(c["data"], "test_mood", test_mood={**c["data"]["test_mood"], "task": None})},
            "config.data.test_mood.task is not given. Accepted: mood, warmth",
        ),
        (
            lambda c: {"data": _without(c["data"], "train_warmth", train_warm=c["data"]["train_warmth"])},
            "train_warm has the task 'warmth', whose training data are train_warmth",
        ),
        (lambda c: {"data": _without(c["data"], "train_warmth")}, "config.data.train_warmth"),
        (
            lambda c: {"task": {"name": "several", "tasks": {**c["task"]["tasks"], "more": {}}}},
            "more: no entry of config.data has task='more'",
        ),
        (
            lambda c: {"task": {"name": "several", "tasks": {**MOOD, "warmth": {"name": "regresion"}}}},
            "Did you mean 'regression'",
        ),
        (
            lambda c: {"task": {"name": "several", "tasks": {**MOOD, "warmth": {"name": "classification"}}}},
            "config.task.tasks.warmth: config.task: classification needs data with classes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_said(config, change, message):
    with pytest.raises(UserError, match=message):
        make_job(build({**config, **change(config)}))


def test_tasks_that_cannot_share_are_refused_by_name():
    head = Classifier(2)
    spec = TaskSpec(classes=("a", "b"), own_pool="mean", pools=("mean",), head=head)
    spec = spec._replace(parts={"one": spec, "two": spec})
    with pytest.raises(UserError, match=r"two \(classification\) uses the checkpoint's own head"):
        several(spec, tasks={"one": {}, "two": {"head": "own"}})
    with pytest.raises(UserError, match="'a b' is no name"):
        several(spec, tasks={"a b": {}})
    task = several(spec, tasks={"one": {}, "two": {}})
    with pytest.raises(UserError, match="multitask"):
        task.targets({})
    assert lookup(TABLE, "several", what="task") is several
