"""Maps of features: what `evaluate --features` stored, laid out in the plane by t-SNE."""

from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.reports import plots
from tljax.reports.html import Html, element, section

FEW = 60
"""Below so many examples neighbourhoods say little, and the two principal directions are shown instead."""


def embedding_sections(folder: Path, whose: str = "") -> list[Html]:
    """A map for each split of which the run in `folder` stored features (features/SPLIT.npz).

    Args:
      folder: of a run.
      whose: words after the title, on a page about many runs.
    """
    parts = []
    for path in sorted((folder / "features").glob("*.npz")):
        features, labels, classes = _read(path)
        places, how = laid_out(features)
        picture = plots.labelled_map(places, labels, classes, title=f"{path.stem}: {len(places)} examples")
        note = f"What the head reads of each example, in the plane by {how}; colours are true classes."
        parts.append(section(f"Features of {path.stem}{whose}", element("div", picture, class_="below"), note=note))
    return parts


def laid_out(features: Any) -> tuple[Any, str]:
    """((N, 2), how): by t-SNE (van der Maaten and Hinton 2008), or where there are few the principal components."""
    from sklearn.decomposition import PCA

    count, width = features.shape
    principal = PCA(min(count, width, 50), svd_solver="full").fit_transform(features)
    if count < FEW:
        return principal[:, :2], "its two principal components"
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # One thread: several wait for one another at every step, and add in another order each time.
    with threadpool_limits(1):
        made = TSNE(init="pca", perplexity=min(30.0, count / 4), random_state=0).fit_transform(principal)
    return made, "t-SNE of its 50 principal components (groups count, distances between them hardly)"


def _read(path: Path) -> tuple[Any, list[int], list[str]]:
    import numpy as np

    try:
        with np.load(path) as stored:
            return stored["features"], stored["labels"].tolist(), stored["classes"].tolist()
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no features of `evaluate --features`: {error}") from error
