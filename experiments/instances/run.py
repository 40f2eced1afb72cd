"""Digits labelled by a biased rule: no weights, estimated weights, the true ones, and labels without the bias.

`python -m experiments.instances.run`
"""

import sys

from experiments.study import Case, Column, Study, main

SOURCE = "experiments.instances.selection"


def drawn(labelled: str = "labelled") -> dict:
    """The values that take the parts of the run's own seed."""
    parts = {"train": labelled, "target": "target", "test": "test"}
    return {f"data.{entry}.source": f"{SOURCE}:open_part:{part}/{{seed}}" for entry, part in parts.items()}


STUDY = Study(
    name="instances",
    config="configs/instances.py",
    cases=(
        Case("no weights", {**drawn(), "method": {"name": "supervised"}}),
        Case("kernel mean matching", {**drawn(), "method.estimate": "kmm"}),
        Case("domain classifier", drawn()),
        Case(
            "true weights",
            {**drawn(), "method": {"name": "importance", "estimate": "given", "weights": f"{SOURCE}:oracle:{{seed}}"}},
        ),
        Case("as many labels without the rule", {**drawn("uniform"), "method": {"name": "supervised"}}),
    ),
    columns=(
        Column("test accuracy, %", "test", "accuracy"),
        Column("test log loss", "test", "log_loss", False, 3),
        Column("effective sample size, %", "training", "effective_sample_size"),
    ),
    seeds=5,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
