"""Digits from few labels: a small ViT from scratch, and pretrained without labels by SimCLR, BYOL or masked patches.

`python -m experiments.ssl_digits.run`
"""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import HERE, Case, Column, Study, main, read

SHOTS = (1, 5, 10, 50)
"""Labelled images of each class."""
STEPS = math.ceil(20 * 7291 / 256)
"""Of a pretraining: 20 epochs of 7291 images, in batches of 256."""
PRETRAININGS = {
    "SimCLR": {},
    "BYOL": {"method": {"name": "byol", "hidden": 256, "width": 64, "decay": 0.99, "steps": STEPS}},
    "MAE": {
        "method": {"name": "mae", "width": 32, "depth": 2, "heads": 4},
        "data.train": {"source": "tljax:usps", "split": "train", "augment": {"crop": 1}},
    },
}
"""Name → values set over the config. All see the training images equally often."""


def few(shots: int) -> dict:
    """The values of a supervised run on so many labelled images of each class."""
    return {
        "task": {"name": "classification", "pool": "mean", "init": "normal"},
        "method": {"name": "supervised"},
        "optim": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.1, "weight_decay": 0.01},
        "data": {
            "train": {
                "source": "tljax:usps",
                "split": "train",
                "shots_per_class": shots,
                "augment": {"crop": 1},
            },
            "test": {"source": "tljax:usps", "split": "test"},
        },
        "train": {"batch_size": 32, "steps": 300 if shots < 10 else 1000, "eval_batch_size": 223},
        "probe": {"standardize": True},
    }


def pretrained(method: str) -> tuple[Case, ...]:
    """A pretraining, and what starts from its backbone."""
    name = f"{method} pretraining"
    export = {"model": {"source": "{after}/export"}}
    return (
        Case(name, PRETRAININGS[method], export=True),
        *(
            Case(f"{method}, {how}, {shots} a class", {**few(shots), **export}, verb=verb, after=name)
            for verb, how in (("probe", "linear probe"), ("train", "fine-tuned"))
            for shots in SHOTS
        ),
    )


STUDY = Study(
    name="ssl_digits",
    config="configs/ssl_digits.py",
    cases=(
        *(Case(f"untrained, linear probe, {shots} a class", few(shots), verb="probe") for shots in SHOTS),
        *(Case(f"from scratch, {shots} a class", few(shots)) for shots in SHOTS),
        *(case for method in PRETRAININGS for case in pretrained(method)),
    ),
    columns=(Column("test accuracy, %", "test", "accuracy"),),
)


def plot(records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the label-efficiency curves, test accuracy against labels a class, beside the README."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = {"fine-tuned": ("from scratch", "fine-tuned"), "linear probe": ("untrained, linear probe", "linear probe")}
    for panel, (title, (plain, how)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for line in (plain, *(f"{method}, {how}" for method in PRETRAININGS)):
            found = [
                [r["metrics"]["test"]["accuracy"] * 100 for r in records if r["case"] == f"{line}, {shots} a class"]
                for shots in SHOTS
            ]
            means, deviations = (list(map(of, found)) for of in (statistics.fmean, statistics.stdev))
            panel.errorbar(SHOTS, means, deviations, marker="o", capsize=3, label=line.partition(",")[0])
        panel.set(title=title, xscale="log", xlabel="labels a class", xticks=SHOTS, xticklabels=SHOTS)
        panel.minorticks_off()
        panel.legend()
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.savefig(HERE / STUDY.name / "curves.png", dpi=90)


if __name__ == "__main__":
    code = main(STUDY)
    if not code:
        plot(read(STUDY))
    sys.exit(code)
