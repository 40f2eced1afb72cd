"""Distillation: the losses against torch, what has no gradient, what is refused, and whole runs with a teacher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.objective import teacher_of
from tljax.assembly.training import make_job, training_batches
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.checkpoints.save import save_pretrained
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.methods import TABLE
from tljax.methods.distillation import distillation
from tljax.tasks.classification import classification
from tljax.tasks.spec import TaskSpec

TASK = classification(TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",)))
RNG = np.random.default_rng(0)
KERNELS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in {"first": (4, 5), "out": (5, 3), "theirs": (4, 6), "their_out": (6, 3)}.items()
}
HINT = {"kernel": RNG.normal(size=(5, 6)).astype(np.float32), "bias": RNG.normal(size=6).astype(np.float32)}
PARAMS = {
    "backbone": {"first": KERNELS["first"]},
    "head": {"out": KERNELS["out"]},
    "method": {"hint": HINT},
    "teacher": {"first": KERNELS["theirs"], "out": KERNELS["their_out"]},
}
BATCH = {
    "inputs": {"x": RNG.normal(size=(5, 2, 4)).astype(np.float32)},
    "targets": RNG.integers(0, 3, 5).astype(np.int32),
    "weight": np.array([1, 2, 1, 1, 0], np.float32),
    "index": np.arange(5, dtype=np.int32),
}
MASK = np.array([[1, 1], [1, 0], [1, 1], [1, 0], [1, 1]], np.float32)


def run(first, out, inputs):
    hidden = jnp.tanh(inputs["x"] @ first)
    return {"logits": hidden.mean(1) @ out, "hidden": hidden, "mask": MASK, "hidden_states": (inputs["x"], hidden)}


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    return run(params["backbone"]["first"], params["head"]["out"], inputs), state


def teacher(params, inputs, *, hidden_states=False):
    return run(params["teacher"]["first"], params["teacher"]["out"], inputs)


def shapes(width, classes=3):
    spec = jax.ShapeDtypeStruct
    states = (spec((1, 2, 4), "float32"), spec((1, 2, width), "float32"))
    return {"logits": spec((1, classes), "float32"), "hidden_states": states}


teacher.shapes = shapes(6)


def value_and_gradient(batch=BATCH, **options):
    method = distillation(forward, TASK, teacher=teacher, **options)

    def value(params):
        losses, _, metrics = method.loss(params, {}, {"train": batch}, jax.random.key(0), 0)
        shares = {name: loss.sum / loss.weight for name, loss in losses.items()}
        return sum(shares.values()), (shares, metrics)

    return jax.jit(jax.value_and_grad(value, has_aux=True))(PARAMS)


def test_the_losses_and_their_gradients_equal_torch():
    assert lookup(TABLE, "distillation", what="method") is distillation
    (_, (shares, metrics)), found = value_and_gradient(temperature=3.0, soft=0.7, hint=(1, -1), hint_weight=0.2)
    given = {name: torch.tensor(kernel, requires_grad=name in ("first", "out")) for name, kernel in KERNELS.items()}
    hint = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in HINT.items()}
    x, weight = torch.tensor(BATCH["inputs"]["x"]), torch.tensor(BATCH["weight"])
    ours, theirs = torch.tanh(x @ given["first"]), torch.tanh(x @ given["theirs"])
    s, t = ours.mean(1) @ given["out"], theirs.mean(1) @ given["their_out"]
    mean = lambda each: (each * weight).sum() / weight.sum()  # noqa: E731
    functional = torch.nn.functional
    task = functional.cross_entropy(s, torch.tensor(BATCH["targets"]).long(), reduction="none")
    divergence = functional.kl_div(
        functional.log_softmax(s / 3, -1), functional.log_softmax(t / 3, -1), log_target=True, reduction="none"
    )
    square = ((ours @ hint["kernel"] + hint["bias"] - theirs) ** 2).mean(-1) * torch.tensor(MASK)
    expected = {
        "task": 0.3 * mean(task),
        "soft": 0.7 * 9 * mean(divergence.sum(-1)),
        "hint": 0.2 * mean(square.sum(1) / torch.tensor(MASK).sum(1)),
    }
    sum(expected.values()).backward()
    for name, value in expected.items():
        np.testing.assert_allclose(shares[name], value.item(), rtol=1e-5)
    wanted = {"backbone/first": given["first"], "head/out": given["out"], "method/hint/kernel": hint["kernel"]}
    for path, leaf in wanted.items():
        np.testing.assert_allclose(flatten(found)[path], leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found["teacher"]))
    agreed = (s.argmax(-1) == t.argmax(-1))[:4].float().mean().item()
    np.testing.assert_allclose(metrics["agreement"], agreed, rtol=1e-6)


def test_padding_changes_nothing_and_without_labels_all_is_soft():
    other = {**BATCH, "inputs": {"x": BATCH["inputs"]["x"].copy()}}
    other["inputs"]["x"][4:] = 30.0
    gradients = [value_and_gradient(batch, hint=(1, 1))[1] for batch in (BATCH, other)]
    jax.tree.map(np.testing.assert_array_equal, *gradients)
    unlabelled = {key: x for key, x in BATCH.items() if key != "targets"}
    (_, (shares, _)), _ = value_and_gradient(unlabelled, soft=1.0)
    assert set(shares) == {"soft"}
    assert distillation(forward, TASK, teacher=teacher, soft=1.0).streams == {"train": "unlabelled"}


def test_a_student_that_agrees_has_no_soft_loss():
    same = {**PARAMS, "teacher": {"first": KERNELS["first"], "out": KERNELS["out"]}}
    method = distillation(forward, TASK, teacher=teacher, soft=1.0)
    losses, _, metrics = method.loss(same, {}, {"train": BATCH}, jax.random.key(0), 0)
    assert abs(losses["soft"].sum) < 1e-6 and metrics["agreement"] == 1


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match=r"teacher is 'a'(.|\n)*temperature is 0(.|\n)*soft is 2(.|\n)*hint is \(1,\)"):
        distillation(forward, TASK, teacher="a", temperature=0, soft=2, hint=(1,))
    with pytest.raises(UserError, match="nothing is learnt from the teacher"):
        distillation(forward, TASK, teacher=teacher, soft=0)

    def refused(theirs, message, **options):
        other = lambda *_, **__: None  # noqa: E731
        other.shapes = theirs
        with pytest.raises(UserError, match=message):
            distillation(forward, TASK, teacher=other, **options).init(jax.random.key(0), shapes(5))

    refused({}, "gives no logits")
    refused(shapes(6, classes=4), "tells 4 classes apart, and the data have 3")
    refused(shapes(6), r"config.method.teacher has 2 hidden states, and hint names number 5", hint=(-1, 5))
    with pytest.raises(UserError, match="All but the width must be equal"):
        wide = lambda p, x, **_: {**teacher(p, x), "hidden_states": (jnp.zeros((5, 3, 6)),)}  # noqa: E731
        wide.shapes = {**shapes(6), "hidden_states": (jax.ShapeDtypeStruct((1, 3, 6), "float32"),)}
        method = distillation(forward, TASK, teacher=wide, hint=(1, 0))
        method.loss(PARAMS, {}, {"train": BATCH}, jax.random.key(0), 0)


# --- whole runs


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(folder, config file): an exported classifier as the teacher, a student half as wide."""
    folder = tmp_path_factory.mktemp("distillation")
    data = save_csv(folder / "data.csv", 64)
    checkpoint = save_tiny_bert(folder / "bert", hidden_size=32)
    before = save_config(
        folder / "teacher.py", checkpoint, data, extra='config.task = dict(name="classification", init="he")'
    )
    made = build(load_config(before))
    variables = {**made.variables, "params": {**made.variables["params"]}}
    variables["params"]["head"] = {"out": {**variables["params"]["head"]["out"], "bias": jnp.array([1.0, -1.0])}}
    save_pretrained(made.model, variables, folder / "exported", processor=made.readers["train"], classes=made.classes)
    extra = f"""
    config.method = dict(name="distillation", teacher=dict(source="{folder}/exported"), hint=(-1, -1))
    config.strategy = dict(layer_decay=dict(rate=0.9), freeze=dict(rules=["embed"]))
    config.train.steps = 8
    config.optim.schedule = "constant"
    """
    student = save_tiny_bert(folder / "student")
    return folder, save_config(folder / "student.py", student, data, extra=extra)


def test_strategies_never_see_the_teacher_and_a_step_leaves_it_as_it_is(parts):
    experiment = build(load_config(parts[1]))
    paths = set(flatten(experiment.variables["params"]))
    theirs = {path for path in paths if path.startswith("teacher/")}
    assert theirs and not theirs & experiment.plan.live(0) and not theirs & set(experiment.plan.rates)
    with pytest.raises(UserError, match=r"teacher.* matches no path"):
        build({**load_config(parts[1]), "strategy": {"freeze": {"rules": ["teacher/.*"]}}})
    job = make_job(experiment)
    state, batches, losses = job.state, job.batches(0), []
    assert not any(path.startswith("teacher/") for path in state.live)
    assert "method/hint/kernel" in state.live
    for _ in range(24):
        state, metrics = job.step(state, next(batches))
        losses.append({name: float(value) for name, value in metrics["losses"].items()})
    for name in ("soft", "hint"):  # the teacher is no good at the task
        assert np.mean([x[name] for x in losses[-5:]]) < np.mean([x[name] for x in losses[:5]]), name


def test_the_teacher_is_the_exported_model(parts):
    folder, config = parts
    import transformers

    section, wing = teacher_of(load_config(config)["method"])
    batch = next(training_batches(build({**load_config(config), "method": {}}), 0))["train"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "exported").eval()
    with torch.no_grad():
        inputs = {name: torch.tensor(np.asarray(x)).long() for name, x in batch["inputs"].items()}
        expected = theirs(**inputs).logits.numpy()
    found = section["teacher"]({"teacher": wing}, batch["inputs"])["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_run_is_continued_and_exported_without_its_teacher(parts):
    folder, config = parts
    once, twice = folder / "once", folder / "twice"
    assert main(["train", f"--config={config}", f"--workdir={once}"]) == 0
    for steps in (4, 8):
        assert main(["train", f"--config={config}", f"--workdir={twice}", f"--config.train.steps={steps}"]) == 0

    def losses(workdir):
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["losses"]) for line in lines if line["kind"] == "train"]

    assert losses(once) == losses(twice)
    for step in (4, 8):
        leaves = json.loads((twice / "checkpoints" / str(step) / "record" / "metadata").read_text())["leaves"]
        assert any("method/hint" in path for path in leaves) and not any("teacher" in path for path in leaves)
    assert main(["export", f"--workdir={once}"]) == 0
    assert main(["predict", f"--workdir={once}", "--text=green green calm"]) == 0
    from safetensors import safe_open

    (file,) = (once / "export").glob("model*.safetensors")
    with safe_open(file, "np") as tensors:
        names = list(tensors.keys())
        assert names and not any("teacher" in name or "hint" in name for name in names)
        assert {tensors.get_slice(name).get_shape()[-1] for name in names} <= {2, 16, 24, 32, 1}
