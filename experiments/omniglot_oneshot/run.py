"""Omniglot's 20 runs of one-shot classification: the modified Hausdorff distance, and prototypes from each minimal set.

`python -m experiments.omniglot_oneshot.run`
"""

import io
import sys
import time
from typing import Any

import numpy as np

from experiments.study import Case, Column, Study, main


def points(image: bytes) -> np.ndarray:
    """The places of the ink of a picture, (points, 2), around their mean."""
    from PIL import Image

    ink = np.argwhere(np.asarray(Image.open(io.BytesIO(image)).convert("L")) == 0).astype(float)
    return ink - ink.mean(axis=0)


def modified_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """The larger of the two mean distances from the points of one picture to the nearest ones of the other.

    Dubuisson and Jain 1994.
    """
    from scipy.spatial.distance import cdist

    distances = cdist(a, b)
    return max(distances.min(axis=0).mean(), distances.min(axis=1).mean())


def hausdorff() -> dict[str, Any]:
    """A record of the nearest training image by the modified Hausdorff distance: mean error over the 20 runs."""
    from scipy.stats import t

    from tljax.data.sources import open_source
    from tljax.tasks.few_shot import read_episodes

    started = time.monotonic()
    source = open_source("tljax:omniglot:runs", split="runs")
    records = [source.records[i] for i in range(len(source.records))]
    ink = [points(record["image"]) for record in records]
    errors = []
    for support, query in read_episodes(records).values():
        nearest = [min(support, key=lambda i, q=q: modified_hausdorff(ink[q], ink[i])) for q in query]
        errors.append(
            np.mean([records[i]["label"] != records[q]["label"] for i, q in zip(nearest, query, strict=True)])
        )
    half = t.ppf(0.975, len(errors) - 1) * np.std(errors, ddof=1) / np.sqrt(len(errors))
    return {
        "metrics": {"test": {"error": float(np.mean(errors)), "interval": float(half), "episodes": len(errors)}},
        "steps": 0,
        "seconds": round(time.monotonic() - started, 1),
        "live_parameters": 0,
    }


SECOND = {
    "data.train.split": "background_small2[:1420]+background_small2[1940:]",
    "data.validation.split": "background_small2[1420:1940]",
}
"""The values that choose the second minimal set; its 26 Latin characters stand in the middle."""
STUDY = Study(
    name="omniglot_oneshot",
    config="configs/omniglot_oneshot.py",
    cases=(
        Case("modified Hausdorff distance", compute=hausdorff),
        Case("prototypes, minimal set 1"),
        Case("prototypes, minimal set 2", SECOND),
    ),
    columns=(
        Column("error on the runs, %", "test", "error", digits=2),
        Column("± 95 % over the runs", "test", "interval"),
        Column("error on Latin, %", "validation", "error"),
    ),
)


if __name__ == "__main__":
    sys.exit(main(STUDY))
