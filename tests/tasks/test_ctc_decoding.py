"""Decoding against the sum over all alignments, which tiny cases allow."""

import itertools
from collections import defaultdict

import jax.numpy as jnp
import numpy as np
import pytest

from tljax.tasks.ctc_decoding import best_path, prefix_search, written


def _log_probabilities(seed: int, frames: int, classes: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 1.5, (frames, classes))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _collapsed(path, blank):
    return tuple(key for key, _ in itertools.groupby(path) if key != blank)


def _all_texts(scores, blank):
    """Text → log of the sum over its alignments."""
    frames, classes = scores.shape
    sums = defaultdict(float)
    for path in itertools.product(range(classes), repeat=frames):
        sums[_collapsed(path, blank)] += np.exp(scores[np.arange(frames), path].sum())
    return {text: np.log(total) for text, total in sums.items()}


@pytest.mark.parametrize(("frames", "classes", "blank"), [(1, 3, 0), (5, 3, 0), (6, 3, 2), (4, 4, 1), (5, 2, 0)])
def test_the_search_over_all_prefixes_is_exact(frames, classes, blank):
    for seed in range(4):
        scores = _log_probabilities(seed, frames, classes)
        wanted = _all_texts(scores, blank)
        found = dict(prefix_search(scores, blank, beams=10_000, least=-np.inf))
        assert set(found) == set(wanted)
        for text, score in wanted.items():
            assert found[text] == pytest.approx(score, abs=1e-9)


def test_the_likeliest_text_is_not_always_the_best_path():
    # Every frame's likeliest class is the blank (0.4² = 0.16), and the text "1" has 0.36 + 2 · 0.24 … in sum.
    scores = np.log(np.array([[0.4, 0.35, 0.25]] * 2))
    wanted = max(_all_texts(scores, 0).items(), key=lambda item: item[1])
    assert wanted[0] == (1,)
    assert prefix_search(scores, 0, beams=4)[0] == (wanted[0], pytest.approx(wanted[1]))
    assert written(best_path(jnp.array(scores)[None], jnp.ones((1, 2)), 0)[0]) == []


def test_few_beams_keep_the_likeliest_and_are_sorted():
    scores = _log_probabilities(7, 30, 6)
    narrow, wide = (prefix_search(scores, 0, beams=beams) for beams in (3, 60))
    assert len(narrow) == 3
    assert [score for _, score in wide] == sorted((score for _, score in wide), reverse=True)
    assert wide[0][1] >= narrow[0][1]
    assert prefix_search(scores[:0], 0, beams=3) == [((), 0.0)]


@pytest.mark.parametrize("blank", [0, 2])
def test_the_best_path_is_collapsed_within_the_mask(blank):
    logits = np.random.default_rng(blank).normal(size=(5, 12, 3))
    lengths = np.array([12, 7, 1, 0, 10])
    found = np.asarray(best_path(jnp.array(logits), jnp.arange(12) < lengths[:, None], blank))
    for row, scores, length in zip(found, logits, lengths, strict=True):
        assert tuple(written(row)) == _collapsed(scores[:length].argmax(-1).tolist(), blank)
