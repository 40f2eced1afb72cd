"""What is trained: tiny models, each with something that a resumed run could lose."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.chaos.faults import Fault
from tests.tiny import save_csv, save_tiny_bert


class Scenario(NamedTuple):
    """`values` are set over the config `base` ("texts" or "images"); `cases` are faults of successive starts."""

    base: str
    values: Mapping[str, Any]
    cases: tuple[tuple[Fault, ...], ...] = ()


def at(point: str, *calls: int, delay: float = 0.0, what: str = "SIGKILL") -> tuple[tuple[Fault, ...], ...]:
    """A case for each call."""
    return tuple((Fault(point, call, delay, what),) for call in calls)


SCENARIOS = {
    "fine-tuning": Scenario(
        "texts",
        {"strategy": {"fine_tune": {}, "ema": {"decay": 0.9}}},
        (
            *at("writing config.json", 1, 2),
            *at("renaming config.json", 1),
            *at("tracing", 1),
            *at("tracing", 1, delay=0.3),
            *at("keeping a compiled program", 1),
            *at("a step", 3, 8),
            *at("a step", 5, delay=0.002),
            *at("reading a step's loss", 6),
            *at("writing a record", 2, 5),
            *at("half a record", 3),
            *at("an evaluation", 1, 3),
            *at("a new best", 1, 2),
            *at("digesting", 2),
            *at("saving", 1, 3),
            *at("saving", 2, delay=0.005),
            *at("saving", 2, delay=0.02),
            *at("before a commit", 1, 3),
            *at("after a commit", 2),
            *at("removing old steps", 1, 2),
            *at("the last evaluation", 1),
            *at("after the last evaluation", 4),
            *at("the report", 1),
            (Fault("a step", 9), Fault("before a restore")),
            (Fault("a step", 9), Fault("after a restore")),
            (Fault("a step", 9), Fault("cutting the records")),
            (Fault("a step", 7), Fault("tracing"), Fault("a step", 3), Fault("saving", 1, 0.01)),
            *at("tracing", 1, what="SIGTERM"),
            *at("a step", 6, what="SIGTERM"),
            *at("a step", 5, what="SIGINT"),
            *at("an evaluation", 1, 2, what="SIGTERM"),
            *at("saving", 2, what="SIGTERM"),
            *at("a step", 5, what="full disk"),
            *at("writing a record", 4, what="full disk"),
            *at("a step", 7, what="vanished folder"),
        ),
    ),
    "two data workers": Scenario(
        "images",
        {"data.train.workers": 2, "data.train.augment": {"flip": True}},
        (*at("a step", 4, 9), *at("saving", 2), *at("an evaluation", 2)),
    ),
    "accumulation, batch norm": Scenario(
        "images",
        {"train.accumulate": 2},
        (*at("a step", 5), *at("before a commit", 2), *at("a new best", 1)),
    ),
    "gradual unfreezing": Scenario(
        "texts",
        {"strategy": {"gradual_unfreezing": {"every": 3, "unit": "steps"}}, "train.save_every": 2},
        (*at("a step", 3, 4, 8), *at("saving", 2, delay=0.01), *at("an evaluation", 2), *at("tracing", 2, 3)),
    ),
    "stage cache": Scenario(
        "texts",
        {"strategy": {"last_k": {"k": 1}}, "train.cache": "{folder}/cache"},
        (
            *at("writing a cache", 1, 20, 90),
            *at("before a cache's commit", 1, 2),
            *at("a step", 5),
            *at("saving", 2),
        ),
    ),
    "patience that runs out": Scenario(
        "texts",
        {"train.patience": 1, "train.eval_every": 2, "optim.learning_rate": 1e-30},
        (*at("the last evaluation", 1), *at("a new best", 2), *at("the report", 1)),
    ),
    "a method with state": Scenario(
        "images",
        {"method": {"name": "mean_teacher"}, "data.unlabelled": "{unlabelled}"},
        (*at("a step", 5), *at("saving", 1, delay=0.01)),
    ),
}

HEAD = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.seed = 0
    config.mesh = dict(data=1)
    config.train = dict(batch_size=8, steps=12, eval_every=4, save_every=2, log_every=2)
"""
TEXTS = """
    columns = dict(text="review", label="mood")
    entry = dict(source="csv:{folder}/data.csv", columns=columns, processor=dict(max_length=16, lengths=(16,)))
    config.model = dict(source="{folder}/bert")
    config.task = dict(name="classification", pool="mean")
    config.optim = dict(name="adamw", learning_rate=3e-3, schedule="linear", warmup=0.1, weight_decay=0.01)
"""
IMAGES = """
    entry = dict(source="npz:{folder}/images.npz", processor=dict(size=8))
    config.model = dict(family="cifar_resnet", variant=dict(blocks=1, widths=[4, 4, 8]))
    config.optim = dict(name="sgd", learning_rate=0.1, momentum=0.9)
"""
TAIL = """
    config.data = dict(
        train=dict(**entry, hold_out=8),
        validation=dict(**entry, hold_out=8, take="held_out"),
        test=dict(source=entry["source"], **{k: v for k, v in entry.items() if k != "source"}),
    )
    return config
"""


def prepare(folder: Path) -> None:
    """Writes a tiny checkpoint, data and the two configs into `folder`."""
    (folder / "runs").mkdir(parents=True)
    save_tiny_bert(folder / "bert")
    save_csv(folder / "data.csv")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(folder / "images.npz", image=images, label=np.arange(40) % 2)
    for name, body in (("texts", TEXTS), ("images", IMAGES)):
        text = textwrap.dedent(HEAD) + body.replace("{folder}", str(folder)) + TAIL
        (folder / f"{name}.py").write_text(text.lstrip())


def options(scenario: Scenario, folder: Path, workdir: Path) -> list[str]:
    """The command line of a scenario."""
    values = dict(scenario.values)
    if values.get("data.unlabelled"):
        values["data.unlabelled"] = {"source": f"npz:{folder}/images.npz", "processor": {"size": 8}}
        values["data.unlabelled"] |= {"batch_size": 8, "views": {"student": {"flip": True}, "teacher": {"flip": True}}}
    values = {key: v.replace("{folder}", str(workdir)) if isinstance(v, str) else v for key, v in values.items()}
    given = [f"--config.{key}={value!r}" for key, value in values.items()]
    return ["train", f"--config={folder / scenario.base}.py", f"--workdir={workdir}", *given]
