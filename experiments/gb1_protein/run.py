"""GB1: ridge regression on one-hot sequences (FLIP's baseline), and a small transformer with and without pretraining.

`python -m experiments.gb1_protein.run`
"""

import sys
import time
from functools import partial

import numpy as np

from experiments.study import Case, Column, Study, main

SPLITS = ("one_vs_rest", "two_vs_rest", "three_vs_rest", "low_vs_high", "sampled")
ENTRIES = ("train", "validation", "test")


def on(split: str) -> dict:
    """The values that choose a split for every entry."""
    return {f"data.{entry}.source": f"tljax:flip_gb1:{split}" for entry in ENTRIES}


def ridge(split: str) -> dict:
    """A record of scikit-learn's ridge regression (α = 1) on 4 × 20 one-hot sites, trained on train and validation."""
    from scipy.stats import spearmanr
    from sklearn.linear_model import Ridge

    from tljax.data.builders.flip_gb1 import SITES
    from tljax.data.characters import PROTEIN
    from tljax.data.sources import open_source

    started = time.monotonic()

    def arrays(*names: str) -> tuple[np.ndarray, np.ndarray]:
        sources = [open_source(f"tljax:flip_gb1:{split}", split=name) for name in names]
        records = [source.records[i] for source in sources for i in range(len(source.records))]
        sites = np.array([[PROTEIN.index(record["text"][site]) for site in SITES] for record in records])
        return np.eye(20)[sites].reshape(len(records), -1), np.array([record["label"] for record in records])

    (x, y), (x_test, y_test) = arrays("train", "validation"), arrays("test")
    found = spearmanr(y_test, Ridge(alpha=1.0).fit(x, y).predict(x_test)).statistic
    return {
        "metrics": {"test": {"spearman": float(found)}},
        "steps": 0,
        "seconds": round(time.monotonic() - started, 1),
        "live_parameters": x.shape[1] + 1,
    }


PRETRAIN = {"task": {"name": "masked_lm", "rate": 0.15}, "train.epochs": 10}
STUDY = Study(
    name="gb1_protein",
    config="configs/gb1_protein.py",
    cases=(
        *(Case(f"ridge on one-hot, {split}", compute=partial(ridge, split)) for split in SPLITS),
        *(
            case
            for split in ("two_vs_rest", "three_vs_rest")
            for case in (
                Case(f"transformer from scratch, {split}", on(split)),
                Case(f"masked pretraining, {split}", {**on(split), **PRETRAIN}, export=True),
                Case(
                    f"transformer pretrained, {split}",
                    {**on(split), "model": {"source": "{after}/export"}},
                    after=f"masked pretraining, {split}",
                ),
            )
        ),
    ),
    columns=(
        Column("test Spearman", "test", "spearman", percent=False, digits=3),
        Column("validation Spearman", "validation", "spearman", percent=False, digits=3),
        Column("masked test perplexity", "test", "perplexity", percent=False, digits=3),
    ),
)


if __name__ == "__main__":
    sys.exit(main(STUDY))
