"""Characters as tokens: numbers, masks, what is not in the alphabet; the proteins of GB1."""

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.data.characters import PROTEIN, characters
from tljax.data.sources import open_source


def test_each_character_is_a_token_between_two_special_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    processor = characters(max_length=8)
    example = processor.example({"id": 0, "text": "MAY"})
    assert example["input_ids"].tolist() == [2, 5 + PROTEIN.index("M"), 5, 24, 3]
    assert len(processor.tokenizer) == 25
    assert processor.example({"id": 0, "text": "A[MASK]Y"})["input_ids"].tolist() == [2, 5, 4, 24, 3]
    assert len(processor.example({"id": 0, "text": "A" * 20})["input_ids"]) == 8
    processor.save(tmp_path / "out")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out")("MAY")["input_ids"] == example["input_ids"].tolist()


def test_what_is_not_in_the_alphabet_is_refused_or_unknown():
    with pytest.raises(UserError, match=r"record 'p1' holds what the tokenizer does not know: 'B', 'x'"):
        characters().example({"id": "p1", "text": "MxBA"})
    assert characters(strict=False).example({"id": 0, "text": "MxA"})["input_ids"].tolist()[2] == 1
    with pytest.raises(UserError, match="'A' stands in the alphabet twice"):
        characters(alphabet="ACA")
    with pytest.raises(UserError, match="alphabet is empty"):
        characters(alphabet="")


@pytest.mark.parametrize(
    ("split", "counts"),
    [("one_vs_rest", (25, 3, 8705)), ("two_vs_rest", (381, 43, 8309)), ("low_vs_high", (4580, 509, 3644))],
)
def test_gb1_is_flip_s(data_dir, split, counts):
    from tljax.data.builders.flip_gb1 import SITES

    sources = {s: open_source(f"tljax:flip_gb1:{split}", split=s) for s in ("train", "validation", "test")}
    assert tuple(len(s.records) for s in sources.values()) == counts
    wild = sources["train"].records[0]
    assert len(wild["text"]) == 265 and (wild["label"] == pytest.approx(1.0)) == (split != "low_vs_high")
    other = sources["test"].records[100]["text"]
    assert set(np.flatnonzero(np.array(list(wild["text"])) != np.array(list(other)))) <= set(SITES)
