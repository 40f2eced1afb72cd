"""Every method with every task and kind of strategy: it runs, or is refused by name before anything is compiled.

A few combinations, in which each task, method and strategy occurs, run three steps; in the long tests all of them do,
and are traced.
"""

import functools
import itertools
import re
import zlib

import jax
import numpy as np
import pytest

from tests.tiny import save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.training import make_job, training, training_batches
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained
from tljax.methods import TABLE

VIEWS = {"weak": 0, "strong": 1, "student": 0, "teacher": 0, "a": 1, "b": 1}
NEEDS = {
    "supervised": ({}, ()),
    "bss": ({}, ()),
    "byol": (dict(hidden=8, width=4), ()),
    "cdan": (dict(widths=(8,)), ("target",)),
    "dan": ({}, ("target",)),
    "dann": (dict(widths=(8,)), ("target",)),
    "deep_coral": ({}, ("target",)),
    "delta": (dict(teacher=None), ()),
    "distillation": (dict(teacher=None), ()),
    "fixmatch": (dict(threshold=0.1), ("unlabelled",)),
    "flexmatch": (dict(threshold=0.1), ("unlabelled",)),
    "importance": ({}, ("target",)),
    "mae": (dict(width=8, depth=1, heads=2), ()),
    "mcc": ({}, ("target",)),
    "mean_teacher": ({}, ("unlabelled",)),
    "prototypes": (dict(ways=2, shots=1, queries=3), ()),
    "pseudo_label": (dict(threshold=0.1), ("unlabelled",)),
    "ridge": (dict(ways=2, shots=1, queries=3), ()),
    "shot": ({}, ()),
    "simclr": (dict(sizes=(8, 4)), ()),
    "tent": ({}, ()),
    "wav2vec2": ({}, ()),
}
"""Method → (options, streams beside `train`). `multitask` needs other data, and has tests/methods/test_multitask.py."""

STRATEGIES = {
    "all": {"fine_tune": {}},
    "head": {"linear_probe": {}},
    "upper": {"last_k": {"k": 2}, "layer_decay": {"rate": 0.5}},
    "norms": {"freeze": {"rules": [["backbone/.*/(scale|bias)|(head|method)/.*", "live"], [".*", "frozen"]]}},
}
TASKS = {
    "image classes": ("image", dict(name="classification", init="normal")),
    "text classes": ("text", dict(name="classification", pool="mean", init="normal")),
    "scores": ("text", dict(name="regression", pool="mean", init="normal")),
    "masked words": ("text", dict(name="masked_lm")),
    "image pretraining": ("image", dict(name="pretraining")),
    "patches": ("patches", dict(name="pretraining")),
    "text pretraining": ("text", dict(name="pretraining")),
}
LABELS = {"supervised", "bss", "dan", "dann", "deep_coral", "delta", "importance"}
"""Methods that serve any task with labels and a vector an example."""
CLASSES = {"cdan", "distillation", "fixmatch", "flexmatch", "mcc", "mean_teacher", "pseudo_label", "shot", "tent"}
FEATURES = {"simclr", "byol"}
EPISODES = {"prototypes", "ridge"}
TRAINED = {"shot", "tent"}
"""They go on with a trained classifier."""
ALLOWED = {
    "image classes": LABELS | CLASSES | FEATURES | EPISODES,
    "text classes": LABELS | CLASSES | FEATURES | EPISODES,
    "scores": LABELS | FEATURES,
    "masked words": LABELS - {"dan", "importance"},
    "image pretraining": FEATURES | EPISODES,
    "patches": FEATURES | EPISODES | {"mae"},
    "text pretraining": FEATURES | EPISODES,
}


MODELS = {
    "image": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
    "patches": {
        "family": "vit",
        "variant": dict(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=2,
        ),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images and texts of two classes, numbers on texts, a tiny BERT, and a teacher for each kind of input."""
    folder, generator = tmp_path_factory.mktemp("matrix"), np.random.default_rng(0)
    for name in ("train", "target", "unlabelled"):
        images = generator.integers(0, 256, (24, 8, 8, 3), np.uint8)
        np.savez(folder / f"{name}.npz", image=images, label=np.arange(24) % 2)
        texts = save_csv(folder / f"{name}.csv", 24, seed=zlib.crc32(name.encode())).read_text().splitlines()
        scored = [f"{line.rsplit(',', 1)[0]},{i / 24}" for i, line in enumerate(texts[1:])]
        (folder / f"{name}_scores.csv").write_text("\n".join(["review,mood", *scored]) + "\n")
    save_tiny_bert(folder / "bert")
    for kind in ("image", "text"):
        plain = {**config_of(folder, f"{kind} classes", "supervised", "all"), "train": {"batch_size": 8, "steps": 0}}
        experiment = build(plain)
        written = dict(processor=experiment.readers["train"] if kind == "text" else None, classes=experiment.classes)
        save_pretrained(experiment.model, experiment.variables, folder / f"{kind}_teacher", **written)
    return folder


def config_of(folder, task: str, method: str, strategy: str) -> dict:
    """A config for the three."""
    kind, section = TASKS[task]
    options, streams = NEEDS[method]
    if method in ("delta", "distillation"):
        options = {"teacher": {"source": str(folder / f"{'text' if kind == 'text' else 'image'}_teacher")}}
    data = {}
    for name in ("train", *streams):
        if kind == "text":
            file, label = (f"{name}_scores.csv", "score") if task == "scores" else (f"{name}.csv", "label")
            columns = (
                {"text": "review"}
                if "pretraining" in task or task == "masked words"
                else {"text": "review", label: "mood"}
            )
            if method in EPISODES:
                columns = {"text": "review", "label": "mood"}
            entry = {
                "source": f"csv:{folder / file}",
                "columns": columns,
                "processor": dict(max_length=16, lengths=(16,)),
            }
            change = {"drop": 0.2}
        else:
            entry, change = {"source": f"npz:{folder / name}.npz", "processor": {"size": 8}}, {"flip": True}
        makes_targets = task == "masked words"
        data[name] = entry if makes_targets else {**entry, "views": dict.fromkeys(VIEWS, change)}
    if method in EPISODES:
        data["train"] = {**data["train"], "episodes": options}
    model = MODELS.get(kind) or {"source": str(folder / "bert")}
    if method in TRAINED and section["name"] == "classification":
        model, section = {"source": str(folder / f"{kind}_teacher")}, {"name": "classification", "head": "own"}
    return {
        "seed": 0,
        "model": model,
        "task": section,
        "method": {"name": method, **options},
        "strategy": STRATEGIES[strategy],
        "optim": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"batch_size": 8, "steps": 3},
        "mesh": {"data": 1},
        "data": data,
    }


def possible(task: str, method: str, strategy: str) -> bool:
    """Whether the three can learn; prototypes have no leaf of their own and read no head: not with the head alone."""
    return method in ALLOWED[task] and (method, strategy) != ("prototypes", "head")


def covering(*axes) -> list[tuple]:
    """Few of the allowed combinations in which every value occurs: greedy, in a fixed order."""
    every = [triple for triple in itertools.product(*axes) if possible(*triple)]
    left, chosen = set().union(*map(enumerate, every)), []
    while left:
        best = max(every, key=lambda triple: len({*enumerate(triple)} & left))
        chosen.append(best)
        left -= {*enumerate(best)}
    return chosen


METHODS = sorted(NEEDS)
COVER = covering(TASKS, METHODS, STRATEGIES)


def test_the_matrix_knows_every_method():
    assert {*NEEDS, "multitask"} == set(TABLE)
    assert all(method in METHODS for methods in ALLOWED.values() for method in methods)


PAIRS = list(itertools.product(TASKS, METHODS))


@pytest.mark.parametrize(("task", "method"), [pair for pair in PAIRS if pair[1] not in ALLOWED[pair[0]]])
def test_what_is_not_allowed_is_refused_by_name(folder, task, method):
    with pytest.raises(UserError) as error:
        assert_traced(config_of(folder, task, method, "all"))
    assert re.search(f"{method}|config.data|task pretraining|episodes", str(error.value))


@pytest.mark.parametrize("task", [task for task in TASKS if TASKS[task][1]["name"] == "pretraining"])
def test_strategies_that_leave_nothing_to_train_are_refused(folder, task):
    with pytest.raises(UserError, match="leave nothing to train"):
        build(config_of(folder, task, "prototypes", "head"))


@pytest.mark.long
@pytest.mark.parametrize(("task", "method"), [pair for pair in PAIRS if pair[1] in ALLOWED[pair[0]]])
def test_what_is_allowed_is_traced(folder, task, method):
    for strategy in STRATEGIES:
        if possible(task, method, strategy) or TASKS[task][1]["name"] != "pretraining":
            assert_traced(config_of(folder, task, method, strategy))


def assert_traced(config: dict) -> None:
    """A step that has the shapes that it was given, and gradients for the live leaves alone."""
    experiment = build(config)
    parts = training(experiment)
    state, metrics = jax.eval_shape(
        parts.step, parts.state, parts.frozen, next(training_batches(experiment, 0)), parts.key
    )
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(state) == shapes(parts.state) and metrics["loss"].shape == ()
    assert not any(path.startswith("teacher/") for path in parts.state.live)


def assert_three_steps_train(config: dict) -> None:
    """Three steps: finite, the frozen leaves as they were, the live ones not all."""
    experiment = build(config)
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    before = {path: np.array(leaf) for path, leaf in state.live.items()}
    for step in range(3):
        state = job.before(step, state)
        state, metrics = job.step(state, next(batches))
        assert np.isfinite(metrics["loss"]), metrics
    assert any(not np.array_equal(before[path], leaf) for path, leaf in state.live.items())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.live))


@pytest.mark.parametrize(("task", "method", "strategy"), COVER, ids=str)
def test_each_of_them_runs(folder, task, method, strategy):
    assert_three_steps_train(config_of(folder, task, method, strategy))


REST = [
    (task, method, strategy)
    for task, method, strategy in itertools.product(TASKS, METHODS, STRATEGIES)
    if possible(task, method, strategy) and (task, method, strategy) not in COVER
]


@pytest.mark.long
@pytest.mark.parametrize(("task", "method", "strategy"), REST, ids=str)
def test_all_of_it_runs(folder, task, method, strategy):
    assert_three_steps_train(config_of(folder, task, method, strategy))
