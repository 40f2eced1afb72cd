"""Orders of factorisation: what is predicted, who is hidden from whom, what decides the order."""

import pickle

import numpy as np
import pytest

from tests.tiny import save_tiny_xlnet
from tljax.base.errors import UserError
from tljax.data.language import NO_LABEL
from tljax.data.permutation import Blanks, Permuted, hidden_by_order
from tljax.data.processors import load_processor

TEXT = "red green blue warm cold round sharp"


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = save_tiny_xlnet(tmp_path_factory.mktemp("xlnet"))
    return load_processor(folder, {"vocab_size": 32}).replace(max_length=16, lengths=(8, 12))


def test_a_target_sees_the_context_and_the_targets_before_it():
    rank = np.array([[-1, 1, 0, -1, 2]])
    seen = 1 - hidden_by_order(rank)[0]
    assert seen.tolist() == [
        [1, 0, 0, 1, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 1, 1, 0],
    ]


def test_one_token_in_so_many_is_a_target_and_its_place_is_asked_for(processor):
    maker = Permuted(processor, share=3)
    texts = [TEXT, "red", "old new soft loud"]
    rng = np.random.default_rng(0)
    batch = maker.collate([maker.example({"id": i, "text": text}, rng) for i, text in enumerate(texts)])
    inputs, labels = batch["inputs"], batch["targets"]
    ids, mapping = inputs["input_ids"], inputs["target_mapping"]
    assert ids.shape == (3, 12) and mapping.shape == (3, 4, 12) and inputs["perm_mask"].shape == (3, 12, 12)
    # 7, 1 and 4 words: two, one and one of them are asked for, and no special token.
    assert (labels != NO_LABEL).sum(axis=1).tolist() == [2, 1, 1]
    for row in range(3):
        for each, place in zip(labels[row], mapping[row], strict=True):
            assert place.sum() == (each != NO_LABEL)
            if place.any():
                assert ids[row][place == 1] == each and each >= 9
                assert inputs["attention_mask"][row][place == 1] == 1
    # Padding stands on the left and is no target, and something real is always seen.
    assert inputs["attention_mask"][1].tolist() == [0] * 9 + [1] * 3
    free = (inputs["perm_mask"] == 0) & (inputs["attention_mask"] == 1)[:, None]
    assert free.any(axis=2).all()


def test_every_word_is_a_target_equally_often_and_evaluation_repeats(processor):
    maker = Permuted(processor, share=6)
    rng, counts = np.random.default_rng(1), np.zeros(9)
    for _ in range(700):
        counts += maker.example({"id": 0, "text": TEXT}, rng)["rank"] >= 0
    assert counts[7:].sum() == 0 and np.all(np.abs(counts[:7] - 100) < 40)
    one, two = (maker.example({"id": 4, "text": TEXT})["rank"] for _ in range(2))
    assert np.array_equal(one, two)
    assert any(not np.array_equal(one, maker.example({"id": i, "text": TEXT})["rank"]) for i in range(5, 9))


def test_texts_without_words_have_no_targets(processor):
    maker = Permuted(processor)
    batch = maker.collate([maker.example({"id": 0, "text": ""})])
    assert np.all(batch["targets"] == NO_LABEL) and not batch["inputs"]["target_mapping"].any()


def test_masks_are_hidden_from_all_and_asked_for_in_their_order(processor):
    maker = Blanks(processor, width=3)
    texts = ("red<mask> blue<mask>", "<mask>")
    inputs = maker.collate([maker.example({"id": i, "text": t}) for i, t in enumerate(texts)])["inputs"]
    blank = inputs["input_ids"] == processor.tokenizer.mask_token_id
    assert blank.sum(axis=1).tolist() == [2, 1]
    assert np.array_equal(inputs["perm_mask"] == 1, np.broadcast_to(blank[:, None], inputs["perm_mask"].shape))
    mapping = inputs["target_mapping"]
    assert mapping.shape == (2, 3, 8) and mapping.sum(axis=2).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert (
        np.array_equal(mapping.sum(axis=1) == 1, blank) and mapping[0].argmax(axis=1)[0] < mapping[0].argmax(axis=1)[1]
    )
    with pytest.raises(UserError, match="record 7 holds no <mask>"):
        maker.example({"id": 7, "text": "red"})


def test_makers_travel_to_workers_and_say_what_decides(processor):
    maker = pickle.loads(pickle.dumps(Permuted(processor, share=4).fixed_shape()))
    assert maker.facts["share"] == 4
    batch = maker.collate([maker.example({"id": 0, "text": "red green"})])
    assert batch["targets"].shape == (1, 4) and batch["inputs"]["input_ids"].shape == (1, 16)
    assert Blanks(processor).fixed_shape().facts == processor.fixed_shape().facts
