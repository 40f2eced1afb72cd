"""Six sets of sentences, each alone and all together, by five ways to weigh them.

`python -m experiments.multitask_sentences.run`
"""

import sys
from typing import Any

from configs.multitask_sentences import SIZES, get_config
from experiments.study import Case, Column, Study, main
from tljax.assembly.reading import share_out
from tljax.methods.multitask import mixing

TITLES = {"mr": "MR", "subj": "SUBJ", "cr": "CR", "mpqa": "MPQA", "trec": "TREC", "sst2": "SST-2"}
TOGETHER = {
    "together, equal weights": {},
    "together, every example weighs the same": {"weighting": "examples"},
    "together, mixed by temperature 4": {"weighting": "examples", "temperature": 4.0},
    "together, weights by uncertainty": {"weighting": "uncertainty", "variance_rate": 10.0},
    "together, PCGrad": {"gradients": "pcgrad"},
}


def alone(name: str) -> dict[str, Any]:
    """The values of a run of one task: its batches and steps are those that it has in the joint run."""
    config = get_config().to_dict()
    size, epochs = config["train"]["batch_size"], config["train"]["epochs"]
    return {
        "task.tasks": {name: config["task"]["tasks"][name]},
        "data": {entry: options for entry, options in config["data"].items() if options["task"] == name},
        "train.batch_size": share_out(mixing(SIZES), size)[name],
        "train.steps": -(-epochs * sum(SIZES.values()) // size),
    }


STUDY = Study(
    name="multitask_sentences",
    config="configs/multitask_sentences.py",
    cases=(
        *(Case(f"{TITLES[name]} alone", alone(name)) for name in SIZES),
        *(Case(name, {"method": {"name": "multitask", **options}}) for name, options in TOGETHER.items()),
    ),
    columns=tuple(Column(f"{TITLES[name]}, %", f"test_{name}", "accuracy") for name in SIZES),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
