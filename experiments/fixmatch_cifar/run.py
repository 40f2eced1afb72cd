"""CIFAR-10 with few labels and many images: four methods, and three networks to start from.

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
VIEW = {"flip": True, "crop": 4}
RESNET = {
    "model.source": "$TLJAX_WEIGHTS/resnet_cifar10/resnet20-12fca82f.th",
    "model.family": "cifar_resnet",
    "model.processor": {"size": 32, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "task.pool": "mean",
    "optim.head_rate": 100.0,
    "train.steps": 60,
    "train.eval_every": 60,
    "data.test": {"source": "tljax:cifar10", "split": "test", "limit": 2000, "seed": 0},
    "data.train.augment": VIEW,
    "data.unlabelled.augment": VIEW,
    "data.unlabelled.views": {"weak": VIEW, "strong": {**VIEW, "randaugment": (2, (1, 10)), "cutout": 0.5}},
}
"""ResNet-20 on images of 32 × 32 as they are: it has seen CIFAR-10's labels, where it is not made anew."""
SOONER = {"pseudo-labels": {"method": {"name": "pseudo_label", "ramp": (0, 30)}}}
SCRATCH = {
    **RESNET,
    "strategy": {"scratch": {}},
    "task.init": "he",
    "optim.learning_rate": 1e-3,
    "optim.head_rate": 1.0,
}


def _cases(network: str, more: dict, methods: dict) -> list[Case]:
    found = []
    for shots, extra in ((4, {}), (10, MORE)):
        for name, values in methods.items():
            # Labels alone have no unlabelled stream, of which `more` could say anything.
            alone = "data.unlabelled" in values
            fitting = {k: v for k, v in more.items() if not (alone and k.startswith("data.unlabelled."))}
            found.append(Case(f"{name}, {shots} a class{network}", {**values, **fitting, **extra}))
    return found


STUDY = Study(
    name="fixmatch_cifar",
    config="configs/fixmatch_cifar.py",
    cases=(
        *_cases("", {}, METHODS),
        *_cases(", ResNet-20 that knows the labels", RESNET, {**METHODS, **SOONER}),
        *_cases(", ResNet-20 from scratch", SCRATCH, {**METHODS, **SOONER}),
    ),
    columns=(
        Column("test accuracy, %", "test", "accuracy"),
        Column("validation accuracy, %", "validation", "accuracy"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
