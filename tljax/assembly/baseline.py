"""What the inputs themselves say, without any model: small pixels, or counts of words. What features must beat."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tljax.base.types import Source
from tljax.data.records import read_many
from tljax.data.streams import eval_stream

SIDE = 16
"""Pixels of an image's sides: 16 × 16 is USPS as it is, and small enough for a linear classifier on photographs."""
WORDS = 2**11
"""Places that words are hashed to."""
BATCH = 250


def raw_features(sources: Mapping[str, Source], processors: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Entry → (N, D), float32, of each of `sources`; None where the inputs are neither texts nor images.

    Texts: words and pairs of words, hashed (Weinberger et al. 2009), weighted by inverse document frequency in `train`,
    scaled to length 1. Images: as the processor makes them, shrunk to `SIDE` pixels a side.

    Args:
      sources: entry → source; one is called `train`.
      processors: entry → processor.
    """
    record = read_many(sources["train"].records, [0])[0]
    if isinstance(record.get("text"), str):
        return _words({name: list(_texts(source)) for name, source in sources.items()})
    if "image" in record:
        return {name: _pixels(source, processors[name]) for name, source in sources.items()}
    return None


def _texts(source: Source) -> Iterator[str]:
    for record in read_many(source.records, range(len(source.records))):
        yield " ".join(part for part in (record["text"], record.get("text_b")) if part)


def _words(texts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashed = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), alternate_sign=False, norm=None)
    counts = {name: hashed.transform(mine) for name, mine in texts.items()}
    weights = TfidfTransformer(sublinear_tf=True).fit(counts["train"])
    return {name: weights.transform(mine).toarray().astype(np.float32) for name, mine in counts.items()}


def _pixels(source: Source, processor: Any) -> np.ndarray:
    rows: dict[int, np.ndarray] = {}
    for batch in eval_stream(source, processor, batch_size=min(BATCH, len(source.records))):
        images = batch["inputs"]["pixel_values"]
        count, height, width, channels = images.shape
        shape = (count, min(height, SIDE), min(width, SIDE), channels)
        small = np.asarray(jax.image.resize(np.float32(images), shape, "linear", antialias=True)).reshape(count, -1)
        rows.update(zip(batch["index"].tolist(), small, strict=True))
    return np.stack([rows[i] for i in range(len(source.records))])
