"""Measures of texts: known values, and none that was not asked for."""

import pytest

from tljax.tasks.text_metrics import text_metrics

WANTED = ["the cat sat on the mat", "a dog runs through the snow today"]
FOUND = ["the cat sat on a mat", "a dog runs through the snow"]


def test_equal_texts_have_100_and_strangers_0():
    perfect = text_metrics(WANTED, WANTED)
    assert set(perfect) == {"bleu", "chrf", "rouge1", "rouge2", "rougeL"}
    assert all(value == pytest.approx(100) for value in perfect.values())
    assert text_metrics(["zzz", "qqq"], WANTED, ("rouge", "chrf")) == pytest.approx(
        {"rouge1": 0, "rouge2": 0, "rougeL": 0, "chrf": 0}
    )
    assert set(text_metrics(FOUND, WANTED, ("bleu",))) == {"bleu"}


def test_values_counted_by_hand():
    found = text_metrics(FOUND, WANTED)
    # Clipped n-grams 11/12, 8/10, 6/8, 4/6 and a brevity penalty of exp(1 - 13/12).
    precision = (11 / 12 * 8 / 10 * 6 / 8 * 4 / 6) ** 0.25
    assert found["bleu"] == pytest.approx(100 * precision * 2.718281828 ** (1 - 13 / 12), rel=1e-6)
    # 5 of 6 words, and 6 of 6 for 6 of 7.
    assert found["rouge1"] == pytest.approx(100 * (5 / 6 + 12 / 13) / 2)
    assert found["rouge2"] == pytest.approx(100 * (3 / 5 + 10 / 11) / 2)
    assert found["rougeL"] == found["rouge1"]
