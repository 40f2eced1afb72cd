"""CIFAR-10, clean and corrupted: a linear probe, fine-tuning, the probe first and then fine-tuning, gradual unfreezing.

`python -m experiments.shift_lpft.run`
"""

import sys

from configs.shift_lpft import CORRUPTIONS
from experiments.study import Case, Column, Study, main

STUDY = Study(
    name="shift_lpft",
    config="configs/shift_lpft.py",
    cases=(
        Case("linear probe", {"strategy": {"linear_probe": {}}}),
        Case("fine-tuning", {"strategy": {"fine_tune": {}}}),
        Case("probe, then fine-tuning"),
        Case("gradual unfreezing", {"strategy": {"gradual_unfreezing": {"every": 0.05, "unit": "run"}}}),
    ),
    columns=(
        Column("clean, %", "test", "accuracy"),
        *(Column(f"{name}, %", name, "accuracy") for name in CORRUPTIONS),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
