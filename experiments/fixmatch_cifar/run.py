"""CIFAR-10 with few labels and many images: labels only, pseudo-labels, FixMatch, FlexMatch; also from scratch.

`python -m experiments.fixmatch_cifar.run`
"""

import sys

from experiments.study import Case, Column, Study, main

METHODS = {
    "labels only": {"method": {"name": "supervised"}, "data.unlabelled": None},
    "pseudo-labels": {"method": {"name": "pseudo_label", "ramp": (0, 100)}},
    "FixMatch": {"method": {"name": "fixmatch"}},
    "FlexMatch": {"method": {"name": "flexmatch"}},
}
MORE = {"data.train.shots_per_class": 10}
SCRATCH = {
    "strategy": {"scratch": {}},
    "task.init": "he",
    "optim.learning_rate": 1e-3,
    "optim.head_rate": 1.0,
    "model.processor.std": 58.0,
}
"""A random network keeps the scale of its inputs: that of raw pixels would make it sure of everything."""

STUDY = Study(
    name="fixmatch_cifar",
    config="configs/fixmatch_cifar.py",
    cases=(
        *(Case(f"{name}, 4 a class", values) for name, values in METHODS.items()),
        *(Case(f"{name}, 10 a class", {**values, **MORE}) for name, values in METHODS.items()),
        *(Case(f"{name}, 4 a class, from scratch", {**values, **SCRATCH}) for name, values in METHODS.items()),
    ),
    columns=(
        Column("test accuracy, %", "test", "accuracy"),
        Column("validation accuracy, %", "validation", "accuracy"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
