"""VOC folders and COCO files: boxes, classes, splits, and what is wrong by file and object; BCCD."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
from tljax.data.detection import BoxProcessor
from tljax.data.images import ImageProcessor
from tljax.data.sources import open_source

THING = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def annotation(name: str, *things) -> str:
    size = "<size><width>20</width><height>10</height></size>"
    objects = "".join(THING.format(*thing) for thing in things)
    return f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


@pytest.fixture
def voc(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    things = {"one": [("cat", 0, 1, 1, 20, 10), ("dog", 1, 3, 4, 3, 6)], "two": [("bee", 0, 2, 2, 8, 5)], "three": []}
    for name, found in things.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(name, *found))
        Image.new("RGB", (20, 10)).save(tmp_path / "JPEGImages" / f"{name}.png")
    (tmp_path / "ImageSets/Main/train.txt").write_text("two\nthree\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("one\n")
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 9, "name": "ant"}, {"id": 3, "name": "wasp"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 10.2], "iscrowd": 1},
        ],
    }
    return tmp_path / "train.json", data


def test_voc_folders(voc):
    source = open_source(f"voc:{voc}", split="val")
    assert source.classes == ("bee", "cat", "dog") and len(source.records) == 1
    record = source.records[0]
    # VOC counts from 1 and means both corners: the whole image, and a column of one pixel.
    assert record["id"] == "one" and record["boxes"].tolist() == [[0, 0, 20, 10], [2, 3, 3, 6]]
    assert record["labels"].tolist() == [1, 2] and record["ignore"].tolist() == [False, True]
    assert record["image"][:4] == b"\x89PNG"
    train = open_source(f"voc:{voc}", split="train")
    assert [train.records[i]["id"] for i in range(2)] == ["two", "three"]
    assert train.records[1]["boxes"].shape == (0, 4)
    example = BoxProcessor(ImageProcessor(size=8), max_boxes=2).example(train.records[1])
    assert example["labels"].tolist() == [-1, -1]
    with pytest.raises(UserError, match=r"has no split 'vall'\. Did you mean 'val'"):
        open_source(f"voc:{voc}", split="vall")


def test_voc_s_faults_are_named_by_file_and_object(voc):
    bad = [("cat", 0, 5, 5, 25, 8), ("cat", 0, 9, 9, 4, 4), ("cow", 0, 1, 1, 4, 4), ("cat", 0, 2, 2, 5, 5)]
    (voc / "Annotations/one.xml").write_text(annotation("one", *bad))
    with pytest.raises(UserError) as error:
        open_source(f"voc:{voc}", split="val", classes=("cat", "crow"))
    text = str(error.value)
    assert "one.xml, object 1 (cat): (4, 4, 25, 8) reaches out" in text
    assert "one.xml, object 2 (cat): (8, 8, 4, 4) is empty" in text
    assert "one.xml, object 3: 'cow' is not a class. Did you mean 'crow'" in text and "object 4" not in text
    cut = open_source(f"voc:{voc}", split="val", columns={"boxes": "cut"}, classes=("cat", "cow"))
    assert cut.records[0]["boxes"].tolist() == [[4, 4, 20, 8], [0, 0, 4, 4], [1, 1, 5, 5]]
    with pytest.raises(UserError, match="Did you mean 'cut'"):
        open_source(f"voc:{voc}", split="val", columns={"boxes": "cutt"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares a document type"),
        ("<annotation>", "is not XML"),
        ("<annotation/>", "has no filename"),
        (annotation("one", ("cat", 0, "x", 1, 2, 3)), "bndbox/xmin is 'x', and must be a number"),
    ],
)
def test_broken_annotations(voc, content, message):
    (voc / "Annotations/one.xml").write_text(content)
    with pytest.raises(UserError, match=rf"one\.xml.*{message}"):
        open_source(f"voc:{voc}", split="val")


def test_missing_parts_of_voc(voc):
    (voc / "ImageSets/Main/val.txt").write_text("four\n")
    with pytest.raises(UserError, match="four has no annotation"):
        open_source(f"voc:{voc}", split="val")
    with pytest.raises(UserError, match=r"no Annotations/\*\.xml"):
        open_source(f"voc:{voc / 'ImageSets'}", split="val")


def test_coco_files(coco):
    path, data = coco
    path.write_text(json.dumps(data))
    for spec in (str(path), str(path.parent), f"{path.parent}/{{split}}.json"):
        source = open_source(f"coco:{spec}", split="train")
        assert source.classes == ("wasp", "ant")  # in the order of their ids
        record = source.records[0]
        assert record["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 20, 10]]  # a fifth of a pixel is rounding
        assert record["labels"].tolist() == [1, 0] and record["ignore"].tolist() == [False, True]


def test_coco_s_faults(coco):
    path, data = coco
    data["annotations"] += [{"id": 5, "image_id": 8, "category_id": 9, "bbox": [0, 0, 1, 1]}]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="annotation 5 is of an unknown image: 8"):
        open_source(f"coco:{path}", split="train")
    data["annotations"][2].update(image_id=7, bbox=[4, 4, 0, 2])
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"train\.json, a\.png, object 3 \(ant\): \(4, 4, 4, 6\) is empty"):
        open_source(f"coco:{path}", split="train")
    del data["categories"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="not in COCO's format: KeyError: 'categories'"):
        open_source(f"coco:{path}", split="train")
    (path.parent / "images" / "a.png").unlink()
    path.write_text(json.dumps({**data, "categories": [{"id": 9, "name": "a"}], "annotations": []}))
    with pytest.raises(UserError, match=r"are not to be found: no a\.png"):
        open_source(f"coco:{path}", split="train")


def test_bccd_is_the_official_one(data_dir):
    counts, labels = {"train": 205, "validation": 87, "test": 72}, Counter()
    for split, count in counts.items():
        source = open_source("tljax:bccd", split=split, data_dir=data_dir)
        assert len(source.records) == count and source.classes == ("RBC", "WBC", "Platelets")
        for i in range(count):
            labels.update(source.records[i]["labels"])
    assert labels == {0: 4153, 1: 372, 2: 361}  # two cells without area are left out
    first = open_source("tljax:bccd", split="validation", data_dir=data_dir).records[0]
    assert first["id"] == "BloodImage_00000"
    np.testing.assert_array_equal(first["boxes"][0], [259, 176, 491, 376])
    assert first["labels"][:2] == [1, 0]
