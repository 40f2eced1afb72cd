"""Pairs of source and target: what a decoder reads and what it must say, lengths, and records that do not fit."""

import pickle

import numpy as np
import pytest

from tests.tiny import save_csv, save_tiny_t5
from tljax.base.errors import UserError
from tljax.data.processors import load_processor
from tljax.data.seq2seq import SourceTarget, first_token
from tljax.data.sources import open_source


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return load_processor(save_tiny_t5(tmp_path_factory.mktemp("t5")), {"vocab_size": 32}).replace(lengths=(4, 8))


def pair(text, target, name=0):
    return {"id": name, "text": text, "target_text": target}


def test_the_decoder_reads_what_it_said_before(processor):
    maker = SourceTarget(processor, start=0, target_length=6, prefix="old ")
    records = [pair("red green", "blue warm"), pair("red", "cold round sharp old new")]
    batch = maker.collate([maker.example(record) for record in records])
    tokens = processor.tokenizer.convert_tokens_to_ids
    inputs, targets = batch["inputs"], batch["targets"]
    assert inputs["input_ids"].tolist() == [[*tokens(["old", "red", "green"]), 1], [*tokens(["old", "red"]), 1, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert targets.tolist() == [
        [*tokens(["blue", "warm"]), 1, -100, -100, -100],
        [*tokens(["cold", "round", "sharp", "old", "new"]), 1],
    ]
    assert inputs["decoder_input_ids"].tolist() == [
        [0, *tokens(["blue", "warm"]), 1, 0, 0],
        [0, *tokens(["cold", "round", "sharp", "old", "new"])],
    ]
    assert {x.dtype for x in (*inputs.values(), targets)} == {np.dtype(np.int32)}
    assert maker.size_of(maker.example(records[1])) == 9


def test_lengths_are_few_and_can_be_one(processor):
    maker = SourceTarget(processor, start=0, target_length=10)
    shapes = set()
    for count in range(1, 10):
        batch = maker.collate([maker.example(pair("red", " ".join(["blue"] * count)))])
        shapes.add(batch["targets"].shape[1])
    assert shapes == {4, 8, 10}
    fixed = maker.fixed_shape()
    batch = fixed.collate([fixed.example(pair("red", "blue"))])
    assert batch["inputs"]["input_ids"].shape == (1, 32) and batch["targets"].shape == (1, 10)
    copy = pickle.loads(pickle.dumps(maker))
    assert copy == maker and copy.facts["target_length"] == 10


def test_without_targets_there_are_the_encoder_s_inputs_alone(processor):
    maker = SourceTarget(processor, start=0, labelled=False)
    batch = maker.collate([maker.example({"id": 0, "text": "red"}), maker.example(pair("red", "blue"))])
    assert set(batch) == {"inputs"} and set(batch["inputs"]) == {"input_ids", "attention_mask"}


def test_a_target_that_is_too_long_is_cut_or_refused(processor):
    long = pair("red", "blue warm cold round", name="seventh")
    cut = SourceTarget(processor, start=0, target_length=3).example(long)["labels"]
    assert processor.tokenizer.decode(cut) == "blue warm </s>"
    with pytest.raises(UserError, match=r"record 'seventh' has 5 tokens, and target_length is 3.*too_long='truncate'"):
        SourceTarget(processor, start=0, target_length=3, too_long="error").example(long)
    exact = SourceTarget(processor, start=0, target_length=5, too_long="error").example(long)["labels"]
    assert len(exact) == 5


def test_records_and_options_that_do_not_fit_are_refused(processor, tmp_path):
    maker = SourceTarget(processor, start=0)
    with pytest.raises(UserError, match="record 3 holds no source text"):
        maker.example({"id": 3, "target_text": "red"})
    for record in ({"id": 3, "text": "red"}, pair("red", None, name=3)):
        with pytest.raises(UserError, match=r"record 3 holds no target text \(target_text is None\)\. Name its column"):
            maker.example(record)
    with pytest.raises(UserError, match=r"target_length is 0.*\n.*Did you mean 'truncate'"):
        SourceTarget(processor, start=0, target_length=0, too_long="truncat")
    small = load_processor(processor.folder, {"vocab_size": 9})
    with pytest.raises(UserError, match="has 15 tokens, and the model's word embedding 9 rows"):
        SourceTarget(small, start=0).example(pair("red", "blue"))


def test_the_first_token_is_the_checkpoint_s_or_the_padding(processor):
    class Config:
        decoder_start_token_id = 5

    assert first_token(Config, processor.tokenizer) == 5
    assert first_token(object, processor.tokenizer) == 0


def test_tables_have_a_column_of_targets(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\nred\trot\ngreen\tgrün\n")
    source = open_source(f"tsv:{path}", columns={"text": "en", "target_text": "de"})
    assert source.records[1] == {"id": 1, "text": "green", "target_text": "grün"} and source.classes is None
    with pytest.raises(UserError, match=r"no column 'dee' for 'target_text'\. Did you mean 'de'"):
        open_source(f"tsv:{path}", columns={"text": "en", "target_text": "dee"})
    with pytest.raises(UserError, match="no column 'target' for 'target_text'"):
        open_source(f"csv:{save_csv(tmp_path / 'moods.csv')}", columns={"text": "review", "target_text": "target"})
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"text": "red", "target_text": "rot"}\n{"text": "green"}\n')
    with pytest.raises(UserError, match="line 2: the text in 'target_text' is None"):
        open_source(f"jsonl:{lines}")


def test_multi30k_is_parallel_in_all_directions(data_dir):
    counts = {"train": 29000, "validation": 1014, "test": 1000, "test_2017": 1000, "test_2017_mscoco": 461}
    for split, count in {**counts, "test_2018": 1071}.items():
        assert len(open_source("tljax:multi30k:en-fr", split=split, data_dir=data_dir).records) == count
    there = open_source("tljax:multi30k:en-fr", split="test", data_dir=data_dir).records[0]
    back = open_source("tljax:multi30k:fr-en", split="test", data_dir=data_dir).records[0]
    assert there["text"] == back["target_text"] == "A man in an orange hat starring at something."
    assert there["target_text"] == back["text"] == "Un homme avec un chapeau orange regardant quelque chose."
    with pytest.raises(UserError, match="en-de"):
        open_source("tljax:multi30k:en-dr", split="test", data_dir=data_dir)
