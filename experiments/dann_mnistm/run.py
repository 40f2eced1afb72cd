"""MNIST → MNIST-M: source only, five methods of adaptation, negatives of the images, trained on the target.

`python -m experiments.dann_mnistm.run`
"""

import sys

from configs.dann_mnistm import HELD_OUT, SOURCE, TARGET, TEST
from experiments.study import Case, Column, Study, main

HELD = {"take": "held_out"}
TESTS = {"validation": {**SOURCE, **HELD}, "test": TEST}
LABELLED = {**TARGET, "hold_out": HELD_OUT}
ON_TARGET = {"train": LABELLED, "validation": {**LABELLED, **HELD}, "test": TEST}
LONGER = {"train.steps": 5000, "train.eval_every": 500, "method.ramp": 5000, "optim.clip": 1.0}
# Drawn anew for every image of both domains: its negative in half of the cases, other brightness and contrast.
CHANGED = {"augment": {"invert": 0.5, "brightness": 0.5, "contrast": 0.5}}
BOTH_CHANGED = {"train": {**SOURCE, **CHANGED}, "target": {**TARGET, **CHANGED}, **TESTS}
SLOWER = {"train.steps": 3000, "train.eval_every": 500, "method.ramp": 3000, "optim.clip": 1.0}
ADVERSARY = {"ramp": 1000, "widths": (100,)}

STUDY = Study(
    name="dann_mnistm",
    config="configs/dann_mnistm.py",
    cases=(
        Case("source only", {"method": {"name": "supervised"}, "data": {"train": SOURCE, **TESTS}}),
        Case("DANN"),
        Case("CDAN+E", {"method": {"name": "cdan", "entropy": True, **ADVERSARY}}),
        Case("DAN", {"method": {"name": "dan", "stages": 2}}),
        Case("Deep CORAL", {"method": {"name": "deep_coral", "place": "logits"}}),
        Case("MCC", {"method": {"name": "mcc"}}),
        Case("DANN, longer", LONGER, seeds=1),
        Case(
            "source only, changed",
            {"method": {"name": "supervised"}, "data": {"train": {**SOURCE, **CHANGED}, **TESTS}},
        ),
        Case("DANN, changed", {"data": BOTH_CHANGED}),
        Case("DANN, changed, longer", {"data": BOTH_CHANGED, **SLOWER}),
        Case("trained on target", {"method": {"name": "supervised"}, "data": ON_TARGET}),
    ),
    columns=(
        Column("test accuracy", "test", "accuracy"),
        Column("validation accuracy", "validation", "accuracy"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
