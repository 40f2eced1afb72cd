"""Digits from few labels: a small ViT from scratch, and pretrained without labels by SimCLR, BYOL or masked patches.

`python -m experiments.ssl_digits.run`
"""

import math
import sys

from experiments.study import Case, Column, Study, main

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


if __name__ == "__main__":
    sys.exit(main(STUDY))
