"""USPS → MNIST and MNIST → USPS: source only in two sizes, four methods of adaptation, trained on the target.

`python -m experiments.digits_usps.run`
"""

import sys

from configs.digits_usps import MNIST, STEPS, USPS, pair
from experiments.study import Case, Column, Study, main

MIDDLE = {"resize_to": 22}
"""MNIST is shrunk to 22 × 22, of which the processor keeps the middle 16: about the middle 20 of 28 pixels."""
ADVERSARY = {"ramp": STEPS, "widths": (100,)}
METHODS = {
    "DANN": {"name": "dann", **ADVERSARY},
    "CDAN+E": {"name": "cdan", "entropy": True, **ADVERSARY},
    "DAN": {"name": "dan", "stages": 2},
    "MCC": {"name": "mcc"},
}


def supervised(data: dict) -> dict:
    """The values of a run that sees no digit without a label."""
    return {"method": {"name": "supervised"}, "data": {k: v for k, v in data.items() if k != "target"}}


def cut(data: dict) -> dict:
    """The same entries, with MNIST cut to its middle."""
    return {k: {**v, "processor": MIDDLE} if v["source"] == MNIST else v for k, v in data.items()}


def direction(name: str, source: str, target: str) -> tuple[Case, ...]:
    """The rows of one direction."""
    data = pair(source, target)
    return (
        Case(f"{name}, source only", supervised(data)),
        Case(f"{name}, source only, MNIST cut to its middle", supervised(cut(data))),
        *(Case(f"{name}, {method}", {"method": options, "data": data}) for method, options in METHODS.items()),
        Case(f"{name}, trained on target", supervised(pair(target, target))),
    )


STUDY = Study(
    name="digits_usps",
    config="configs/digits_usps.py",
    cases=(*direction("USPS → MNIST", USPS, MNIST), *direction("MNIST → USPS", MNIST, USPS)),
    columns=(
        Column("test accuracy", "test", "accuracy"),
        Column("validation accuracy", "validation", "accuracy"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
