"""Ants or bees by SqueezeNet 1.1: frozen, last stages, all stages, from scratch, by the number of labelled photographs.

`python -m experiments.hymenoptera.run`
"""

import statistics
import sys
from pathlib import Path

from experiments.study import HERE, Case, Column, Study, main, read

ALL = 100
"""About so many photographs of each class are left for training: 200 in all."""
SIZES = {128: 146, 256: 256}
"""Side of the square that the network sees → the short side of the image that it is cut from."""
SCRATCH = {"strategy": {"scratch": {}}, "task.init": "he", "optim.learning_rate": 1e-3, "optim.head_rate": 1.0}
STRATEGIES = {
    "frozen": ("probe", {}, (5, 10, 25, 50, ALL)),
    "last 3 stages": ("train", {"strategy": {"last_k": {"k": 3}}}, (5, 25, ALL)),
    "all stages": ("train", {"strategy": {"fine_tune": {}}}, (5, 25, ALL)),
    "from scratch": ("train", SCRATCH, (5, 25, ALL)),
}
"""Name → (verb, values set over the config, labelled photographs of each class)."""


def case_name(strategy: str, shots: int) -> str:
    """As in the table."""
    return f"{strategy}, {shots} a class" if shots != ALL else f"{strategy}, all labels"


def few(shots: int) -> dict:
    """The values that leave so many photographs of each class."""
    return {} if shots == ALL else {"data.train.shots_per_class": shots}


STUDY = Study(
    name="hymenoptera",
    config="configs/hymenoptera.py",
    cases=(
        *(
            Case(
                f"frozen, all labels, {size} × {size}",
                {"model.processor.size": size, "model.processor.resize_to": short},
                verb="probe",
            )
            for size, short in SIZES.items()
        ),
        *(
            Case(case_name(strategy, shots), {**values, **few(shots)}, verb=verb)
            for strategy, (verb, values, numbers) in STRATEGIES.items()
            for shots in numbers
        ),
    ),
    columns=(
        Column("test accuracy, %", "test", "accuracy"),
        Column("validation accuracy, %", "validation", "accuracy"),
    ),
)


def plot(path: Path) -> None:
    """Test accuracy against the number of labels, from the records: means and standard deviations over the seeds."""
    from matplotlib.figure import Figure

    records = read(STUDY)
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for strategy, (_, _, numbers) in STRATEGIES.items():
        points = []
        for shots in numbers:
            name = case_name(strategy, shots)
            values = [100 * r["metrics"]["test"]["accuracy"] for r in records if r["case"] == name]
            if values:
                points.append((shots, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0))
        if points:
            axes.errorbar(*zip(*points, strict=True), marker="o", capsize=3, label=strategy)
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 25, 50, ALL], ["5", "10", "25", "50", "all"], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="labelled photographs of each class", ylabel="test accuracy, %")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    code = main(STUDY)
    if not code:
        plot(HERE / STUDY.name / "learning_curves.svg")
    sys.exit(code)
