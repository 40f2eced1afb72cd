"""Texts for language models: packing loses nothing and mixes nothing, masks are what they say, prompts end together."""

import numpy as np
import pytest

from tests.tiny import WORDS, save_tiny_bert
from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.images import ImageProcessor
from tljax.data.language import NO_LABEL, Masking, NextToken, Prompts, Unmasked, pack
from tljax.data.processors import load_processor

TEXTS = ("red green", "blue", "warm cold round sharp old", "new soft loud")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    return load_processor(folder, {"vocab_size": 32, "max_position_embeddings": 32}).replace(lengths=(8, 16))


def source(texts=TEXTS):
    return Source([{"id": i, "text": text} for i, text in enumerate(texts)], None, "texts")


def test_chunks_hold_all_tokens_in_order_with_their_documents(processor):
    packed = pack(source(), processor, 6)
    whole = [i for text in TEXTS for i in processor.tokenizer(text)["input_ids"]]
    chunks = [packed.records[i] for i in range(len(packed.records))]
    real = np.concatenate([c["input_ids"][c["segment_ids"] > 0] for c in chunks])
    assert real.tolist() == whole
    assert all(len(c["input_ids"]) == 6 for c in chunks)
    # [CLS] red green [SEP] [CLS] blue | [SEP] [CLS] warm …
    assert chunks[0]["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2]
    assert chunks[0]["position_ids"].tolist() == [0, 1, 2, 3, 0, 1]
    assert chunks[1]["segment_ids"].tolist() == [1, 2, 2, 2, 2, 2]
    assert chunks[1]["position_ids"].tolist() == [0, 0, 1, 2, 3, 4]


def test_the_next_token_is_a_target_within_its_document_only(processor):
    packed = pack(source(), processor, 6)
    maker = NextToken(processor, 6)
    batch = maker.collate([maker.example(packed.records[i]) for i in (0, len(packed.records) - 1)])
    ids, labels = batch["inputs"]["input_ids"], batch["targets"]
    assert labels[0].tolist() == [*ids[0, 1:4], NO_LABEL, ids[0, 5], NO_LABEL]
    padding = batch["inputs"]["segment_ids"][1] == 0
    assert np.all(labels[1][padding] == NO_LABEL)
    assert np.array_equal(batch["inputs"]["attention_mask"][1] == 0, padding)


def test_prompts_end_at_the_same_place_without_a_last_token(processor):
    maker = Prompts(processor)
    batch = maker.collate([maker.example({"id": i, "text": t}) for i, t in enumerate(("red", "red green blue"))])[
        "inputs"
    ]
    assert batch["input_ids"].shape == (2, 8)
    words = [
        processor.tokenizer.convert_ids_to_tokens(row[mask > 0].tolist())
        for row, mask in zip(*batch.values(), strict=True)
    ]
    assert words == [["[CLS]", "red", "[SEP]"], ["[CLS]", "red", "green", "blue", "[SEP]"]]
    assert np.all(batch["attention_mask"][:, -3:] == 1)


def test_masks_hide_a_share_of_the_words_and_nothing_special(processor):
    maker, words = Masking(processor, 0.4), " ".join(WORDS[:10])
    record = {"id": "a", "text": words}
    plain = processor.example(record)["input_ids"]
    example = maker.example(record)
    assert len(example["labels"]) == 4
    assert np.array_equal(example["labels"], plain[example["positions"]])
    untouched = np.setdiff1d(np.arange(len(plain)), example["positions"])
    assert np.array_equal(example["input_ids"][untouched], plain[untouched])
    assert not {0, len(plain) - 1} & set(example["positions"].tolist())
    assert np.array_equal(maker.example(record)["input_ids"], example["input_ids"])
    batch = maker.collate([example, maker.example({"id": "b", "text": "red"})])
    assert batch["targets"]["labels"].shape == (2, round(0.4 * 16))
    assert (batch["targets"]["labels"][1] != NO_LABEL).sum() == 1


def test_of_the_chosen_words_80_per_cent_are_masked_and_10_replaced(processor):
    maker, rng = Masking(processor, 0.5), np.random.default_rng(0)
    record = {"id": "a", "text": " ".join(WORDS)}
    masked = changed = total = 0
    for _ in range(800):
        example = maker.example(record, rng)
        ids = example["input_ids"][example["positions"]]
        masked += np.sum(ids == processor.tokenizer.mask_token_id)
        changed += np.sum((ids != processor.tokenizer.mask_token_id) & (ids != example["labels"]))
        total += len(ids)
    # A random token is the mask or the old one in 2 of 17 cases.
    assert masked / total == pytest.approx(0.8 + 0.1 / 17, abs=0.02)
    assert changed / total == pytest.approx(0.1 * 15 / 17, abs=0.02)


def test_what_cannot_be_modelled_is_refused(processor):
    with pytest.raises(UserError, match="record 1 holds no text"):
        pack(Source([{"id": 0, "text": "red"}, {"id": 1, "image": b""}], None, "s"), processor, 4)
    with pytest.raises(UserError, match="needs texts"):
        pack(source(), ImageProcessor(), 4)
    with pytest.raises(UserError, match=r"holds no \[MASK\]"):
        Unmasked(processor).example({"id": 0, "text": "red green"})
