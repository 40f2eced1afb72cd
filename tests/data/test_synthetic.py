"""Made-up records: the same every time, of the shapes that were asked for, and readable by the real processors."""

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.data.characters import characters
from tljax.data.images import ImageProcessor
from tljax.data.sources import open_source
from tljax.data.streams import train_stream


def test_texts_have_the_words_and_classes_that_were_asked_for():
    source = open_source("synthetic:text:words=7,classes=3,count=10")
    assert source.classes == ("class0", "class1", "class2") and len(source.records) == 10
    assert [len(record["text"].split()) for record in map(source.records.__getitem__, range(10))] == [7] * 10
    assert source.records.labels() == [source.records[i]["label"] for i in range(10)] == [0, 1, 2] * 3 + [0]
    again, other = open_source(source.name.removesuffix("[train]")), open_source("synthetic:text:words=7", split="test")
    assert again.records[4] == source.records[4] and other.records[4]["text"] != source.records[4]["text"]
    with pytest.raises(IndexError):
        source.records[10]


def test_images_go_through_the_real_processor():
    source = open_source("synthetic:image:size=24,classes=5,count=8")
    record = source.records[6]
    assert record["image"].shape == (24, 24, 3) and record["image"].dtype == np.uint8 and record["label"] == 1
    batch = next(train_stream(source, ImageProcessor(size=16), batch_size=4, augment={"flip": True}))
    assert batch["inputs"]["pixel_values"].shape == (4, 16, 16, 3)
    assert not np.array_equal(*batch["inputs"]["pixel_values"][:2])


def test_texts_fill_the_rows_of_a_batch():
    processor = characters(alphabet="abcdefghijklmnopqrstuvwxyz", strict=False, max_length=32)
    batch = next(train_stream(open_source("synthetic:text:words=32,count=8"), processor, batch_size=4))
    assert batch["inputs"]["attention_mask"].all() and batch["inputs"]["input_ids"].shape == (4, 32)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("synthetic:texts", "Did you mean 'text'"),
        ("synthetic:text:word=3", "Did you mean 'words'"),
        ("synthetic:image:size=big", "size=big"),
        ("synthetic:image:size=0", "size=0"),
        ("synthetic:image:classes", "classes is not of the form"),
    ],
)
def test_bad_options_are_refused_by_name(spec, named):
    with pytest.raises(UserError, match=named):
        open_source(spec)
