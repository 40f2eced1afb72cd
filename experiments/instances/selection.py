"""Digits of which some are less likely to be labelled than others, by a known rule: a covariate shift.

scikit-learn's 1797 digits (Alpaydin and Kaynak 1998) are divided by chance into a test set, unlabelled digits of the
same distribution and a pool. A digit of the pool gets a label with a probability that falls along the first principal
component of the pixels, as in Huang et al. 2007; it depends on the image alone, so that the weights 1 / probability
undo it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Source

TEST, TARGET = 700, 550
LEAST, MOST, STEEP = 0.03, 0.6, 3.0
"""The probabilities are between LEAST and LEAST + MOST; STEEP is how fast they fall, in standard deviations."""
PARTS = ("labelled", "uniform", "target", "test")


def open_part(
    rest: str,
    *,
    split: str = "train",
    data_dir: Any = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """The part of a draw: `labelled/0` is the part of seed 0. `uniform` has as many labels, given without the rule."""
    images, labels, chosen = _part(rest)
    records = [{"id": int(i), "image": images[i], "label": int(labels[i])} for i in chosen]
    return Source(records, tuple(map(str, range(10))), f"digits/{rest}")


def oracle(rest: str) -> np.ndarray:
    """1 / the probability to be labelled, of each record of `labelled/REST`."""
    images, _, chosen = _part(f"labelled/{rest}")
    return 1 / probabilities(images)[chosen]


def probabilities(images: np.ndarray) -> np.ndarray:
    """The probability of each image (N, 8, 8, 1) to be labelled."""
    pixels = images.reshape(len(images), -1).astype(np.float64)
    centred = pixels - pixels.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is not determined: the largest entry is made positive.
    first = components[0] * np.sign(components[0][np.abs(components[0]).argmax()])
    place = centred @ first
    return LEAST + MOST / (1 + np.exp(STEEP * place / place.std()))


def _part(rest: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(all images, all labels, the indices of the part)."""
    from sklearn.datasets import load_digits

    part, _, seed = rest.partition("/")
    if part not in PARTS or not seed.isdecimal():
        raise UserError(f"{rest!r} is no part of the digits; it must be one of {', '.join(PARTS)}, a slash and a seed.")
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    generator = np.random.default_rng([int(seed), 1797])
    order = generator.permutation(len(images))
    pool = order[TEST + TARGET :]
    labelled = pool[generator.random(len(pool)) < probabilities(images)[pool]]
    found = {
        "test": order[:TEST],
        "target": order[TEST : TEST + TARGET],
        "labelled": labelled,
        "uniform": generator.permutation(pool)[: len(labelled)],
    }
    return images, data.target, np.sort(found[part])
