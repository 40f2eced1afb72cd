"""CoNLL files: sentences, tags, the lines of what is wrong; words and their first tokens."""

import numpy as np
import pytest

from tests.tiny import save_tiny_bert
from tljax.base.errors import UserError
from tljax.data.conll import parse
from tljax.data.processors import load_processor
from tljax.data.sources import open_source
from tljax.data.tagging import Tagging

TEXT = """-DOCSTART- -X- O

red JJ B-COLOUR
green JJ I-COLOUR
old JJ O

loud JJ O
blue JJ B-COLOUR
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "train.conll").write_text(TEXT)
    (tmp_path / "test.conll").write_text("calm JJ B-MOOD\n")
    return tmp_path


def test_sentences_and_the_tags_of_all_splits(path):
    source = open_source(f"conll:{path}", split="train")
    assert source.classes == ("O", "B-COLOUR", "I-COLOUR", "B-MOOD", "I-MOOD")
    assert source.records[0] == {"id": 0, "tokens": ["red", "green", "old"], "tags": [1, 2, 0]}
    assert source.records[1]["tags"] == [0, 1]
    middle = open_source(f"conll:{path}", split="train", columns={"tokens": 1})
    assert middle.records[0]["tokens"] == ["JJ"] * 3


def test_malformed_tags_are_named_with_their_lines(path):
    with pytest.raises(UserError, match=r"line 2 has no tag: 'green'.*\n.*line 3: 'X-COLOUR' is no tag of the form O"):
        parse("red O\ngreen\nblue X-COLOUR\n", "file.conll")
    with pytest.raises(UserError, match=r"line 1: 'B-COLOR' is no tag\. Did you mean 'B-COLOUR'"):
        parse("red B-COLOR\n", "file.conll", classes=("O", "B-COLOUR", "I-COLOUR"))
    with pytest.raises(UserError, match="and 5 more"):
        parse("red\n" * 25, "file.conll")
    (path / "train.conll").write_bytes(b"caf\xe9 O\n")
    with pytest.raises(UserError, match=r"train\.conll is not text in UTF-8"):
        open_source(f"conll:{path}", split="train")


def test_wnut17_is_the_official_one(data_dir):
    counts = {"train": 3394, "validation": 1009, "test": 1287}
    sources = {split: open_source("tljax:wnut17", split=split) for split in counts}
    assert {split: len(source.records) for split, source in sources.items()} == counts
    train = sources["train"]
    assert len(train.classes) == 13 and train.classes[0] == "O"
    tags = np.concatenate([train.records[i]["tags"] for i in range(3394)])
    assert np.sum(tags == train.classes.index("B-person")) == 660
    assert train.records[0]["tokens"][:4] == ["@paulwalk", "It", "'s", "the"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    return load_processor(folder, {"vocab_size": 32, "max_position_embeddings": 32}).replace(lengths=(8, 16))


def test_the_first_token_of_a_word_has_its_tag(processor):
    maker = Tagging(processor)
    # An unknown word with a hyphen is three tokens for BERT's first splitting.
    record = {"id": 0, "tokens": ["red", "so-so", "old"], "tags": [3, 1, 2]}
    example = maker.example(record)
    assert example["labels"].tolist() == [-100, 3, 1, -100, -100, 2, -100]
    batch = maker.collate([example, maker.example({"id": 1, "tokens": ["calm"], "tags": [4]})])
    assert batch["targets"].shape == batch["inputs"]["input_ids"].shape == (2, 8)
    assert batch["targets"][1].tolist() == [-100, 4, *[-100] * 6]
    short = Tagging(processor.replace(max_length=4))
    assert example["words"].tolist() == [0, 1, 2, 0, 0, 3, 0]
    assert short.example(record)["words"].tolist() == [0, 1, 2, 0]
    assert "targets" not in maker.collate([maker.example({"id": 2, "text": "red old"})])


def test_tags_that_do_not_fit_the_words_are_refused(processor):
    with pytest.raises(UserError, match=r"record 'a' has 2 tokens and 1 tags"):
        Tagging(processor).example({"id": "a", "tokens": ["red", "old"], "tags": [0]})
    with pytest.raises(UserError, match=r"record 'b' has no words to tag"):
        Tagging(processor).example({"id": "b", "tokens": []})
