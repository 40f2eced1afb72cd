"""Every strategy on one sentence encoder: 5452 questions of six types, and ten texts of each of 77 intents.

`python -m experiments.strategies.run`
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.study import HERE, Case, Column, Study, main, read


class Way(NamedTuple):
    """A row of each table: a strategy, the learning rates that it is given, and its kind in the plots."""

    name: str
    kind: str
    strategy: Mapping[str, Any]
    rate: float = 5e-5
    method: Mapping[str, Any] = {"name": "supervised"}
    cached: bool = False
    after: str | None = None


HEAD_RATE = 1e-3
"""The learning rate of the new layer, wherever something else moves too."""
FULL, SMALL = "everything moves at last", "a part moves"
PULLED, ADAPTED = "everything, held near the start", "adapters"
ALL = {"fine_tune": {}}
PROBE = "head only"
WAYS = (
    Way(PROBE, SMALL, {"linear_probe": {}}, 1e-2, cached=True),
    Way("last block", SMALL, {"last_k": {"k": 1}}, cached=True),
    Way("last three blocks", SMALL, {"last_k": {"k": 3}}, cached=True),
    Way("first block (surgical)", SMALL, {"surgical": {"stages": ("block0",)}}),
    Way("norms", SMALL, {"norm_only": {}}, 1e-3),
    Way("biases (BitFit)", SMALL, {"bias_only": {}}, 1e-3),
    Way("fine-tuning", FULL, ALL),
    Way("fine-tuning, rates falling by 0.8 a block", FULL, {**ALL, "layer_decay": {"rate": 0.8}}),
    Way("head, then all (LP-FT)", FULL, {"lp_ft": {"probe": 0.3}}),
    Way("gradual unfreezing", FULL, {"gradual_unfreezing": {"every": 0.1, "unit": "run"}}),
    Way("fine-tuning, moving average", FULL, {**ALL, "ema": {"decay": 0.99}}),
    Way("from random values", FULL, {"scratch": {}}, 5e-4),
    Way("L2-SP", PULLED, {**ALL, "l2_sp": {"strength": 0.1}}),
    Way("mixout", PULLED, {**ALL, "mixout": {"probability": 0.5}}),
    Way("DELTA, without attention", PULLED, ALL, method={"name": "delta"}),
    Way(
        "DELTA",
        PULLED,
        ALL,
        method={"name": "delta", "attention": True, "teacher": {"source": "{after}/export"}},
        after=PROBE,
    ),
    Way("BSS", PULLED, ALL, method={"name": "bss"}),
    Way("LoRA, rank 8", ADAPTED, {"lora": {"rank": 8}}, 1e-3),
    Way("LoRA+, rank 8", ADAPTED, {"lora": {"rank": 8, "b_rate": 16.0}}, 2e-4),
    Way("rsLoRA, rank 64", ADAPTED, {"lora": {"rank": 64, "rslora": True}}, 2e-4),
    Way("DoRA, rank 8", ADAPTED, {"lora": {"rank": 8, "dora": True}}, 1e-3),
    Way("QLoRA, int8", ADAPTED, {"lora": {"rank": 8}, "quantize": {"kind": "int8"}}, 1e-3),
    Way("QLoRA, nf4", ADAPTED, {"lora": {"rank": 8}, "quantize": {"kind": "nf4"}}, 1e-3),
    Way("IA³", ADAPTED, {"ia3": {}}, 5e-3),
    Way("bottleneck after attention and MLP", ADAPTED, {"bottleneck": {"width": 64}}, 1e-3),
    Way("bottleneck beside the MLP", ADAPTED, {"bottleneck": {"width": 64, "parallel": True}}, 1e-3),
    Way("prefix of 10", ADAPTED, {"prefix": {"length": 10}}, 5e-3),
    Way("prompt of 10", ADAPTED, {"prompt": {"length": 10}}, 5e-3),
)

LENGTHS = {"max_length": 64, "lengths": (16, 24, 32, 64)}
READ = {"split": "train", "processor": LENGTHS, "group_by_length": True}
TREC = {"source": "tljax:trec", **READ}
BANKING = {
    "data.train": {"source": "tljax:banking77", "shots_per_class": 10, **READ},
    "data.test": {"source": "tljax:banking77", "split": "test", "processor": LENGTHS},
    "train.epochs": 8,
}
SETS = {"TREC": {}, "Banking77, 10 a class": BANKING}
"""Data set → values set over the config, which is that of TREC."""


def case_of(name: str, way: Way) -> Case:
    """The case of a way on a data set."""
    values: dict[str, Any] = {
        **SETS[name],
        "strategy": dict(way.strategy),
        "method": dict(way.method),
        "optim.learning_rate": way.rate,
        "optim.head_rate": 1.0 if way.name == PROBE else HEAD_RATE / way.rate,
    }
    if way.cached:
        # A cache of its own, so that its making is a part of what the run costs; vectors in it have no lengths.
        values["train.cache"] = "{folder}/cache"
        values["data.train"] = {**values.get("data.train", TREC), "group_by_length": way.name != PROBE}
    after = f"{name}: {way.after}" if way.after else None
    return Case(f"{name}: {way.name}", values, export=way.name == PROBE, after=after)


STUDY = Study(
    name="strategies",
    config="configs/strategies.py",
    cases=tuple(case_of(name, way) for name in SETS for way in WAYS),
    columns=(Column("test accuracy, %", "test", "accuracy"),),
    apart=True,
)


def plots(records: Sequence[Mapping[str, Any]]) -> None:
    """Writes accuracy against live parameters and against seconds, a picture a data set that has records.

    Points have numbers, which a list beside them explains; what starts from random values is in the list alone, for on
    an axis with it all others are one point.
    """
    from matplotlib.figure import Figure

    axes = (("live_parameters", "parameters that ever train"), ("seconds", "seconds of a run, start to end"))
    colours = dict(zip((SMALL, FULL, PULLED, ADAPTED), ("C0", "C1", "C2", "C3"), strict=True))
    for index, name in enumerate(SETS):
        if not any(record["case"].startswith(f"{name}: ") for record in records):
            continue
        figure = Figure(figsize=(15, 7), layout="constrained")
        *panels, words = figure.subplots(1, 3, gridspec_kw={"width_ratios": (5, 5, 3)})
        words.axis("off")
        for panel, (key, label) in zip(panels, axes, strict=True):
            for number, way in enumerate(WAYS, 1):
                point = _middle(records, f"{name}: {way.name}", key)
                if point and "scratch" not in way.strategy:
                    panel.scatter(point[0], 100 * point[1], color=colours[way.kind])
                    panel.annotate(str(number), (point[0], 100 * point[1]), xytext=(5, 2), textcoords="offset points")
            panel.margins(x=0.15)
            panel.set_xscale("log")
            panel.set_xlabel(label)
            panel.set_ylabel("test accuracy, %")
        for number, way in enumerate(WAYS, 1):
            if point := _middle(records, f"{name}: {way.name}", "seconds"):
                text, height = f"{number}  {way.name}: {100 * point[1]:.1f}", 1 - (number - 1) / len(WAYS)
                words.text(0, height, text, color=colours[way.kind], va="top", transform=words.transAxes)
        handles = [panels[0].scatter([], [], color=colour, label=kind) for kind, colour in colours.items()]
        panels[0].legend(handles=handles, fontsize=8)
        figure.suptitle(name)
        figure.savefig(HERE / STUDY.name / f"{('trec', 'banking77')[index]}.png", dpi=90)


def _middle(records: Sequence[Mapping[str, Any]], case: str, key: str) -> tuple[float, float] | None:
    """(median of `key`, mean accuracy) of a case."""
    rows = [record for record in records if record["case"] == case]
    if not rows:
        return None
    accuracy = statistics.fmean(row["metrics"]["test"]["accuracy"] for row in rows)
    return statistics.median(row[key] for row in rows), accuracy


if __name__ == "__main__":
    code = main(STUDY)
    if not code:
        plots(read(STUDY))
    sys.exit(code)
