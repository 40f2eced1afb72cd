"""Images and masks that move together, masks in their encodings, folders of them, and what is wrong by name."""

import io

import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
from tljax.data.images import ImageProcessor
from tljax.data.segmentation import IGNORED, MaskAugment, MaskProcessor, at_image, mask_of
from tljax.data.sources import open_source

PLAIN = ImageProcessor(size=(12, 20), mean=(0,), std=(1,), rescale=1.0, resample="nearest")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def maker(**options) -> MaskProcessor:
    return MaskProcessor(PLAIN, 4, **options)


def same(height: int = 12, width: int = 20) -> dict:
    """A record whose image is its mask, so that they must stay equal: the grey value 127 marks no class."""
    mask = np.random.default_rng(0).integers(0, 4, (height, width)).astype(np.uint8)
    return {"id": "r", "image": mask, "mask": mask}


@pytest.mark.parametrize("size", [(12, 20), (7, 9), (30, 11)])
@pytest.mark.parametrize("place", ["stretch", "letterbox"])
def test_image_and_mask_move_together(size, place):
    record, processor = same(*size), maker(place=place, augment=dict(scale=(0.3, 1.6), ratio=1.5))
    seen = set()
    for seed in range(8):
        found = processor.example(record, np.random.default_rng(seed))
        grey = found["pixel_values"][..., 0]
        assert found["pixel_values"].shape == (12, 20, 3) and found["mask"].dtype == np.uint8
        assert np.array_equal(np.where(grey == 127, IGNORED, grey), found["mask"])
        seen.add(found["mask"].tobytes())
    assert len(seen) > 5
    plain = [processor.example(record)["mask"] for _ in range(2)]
    assert np.array_equal(*plain) and (IGNORED in plain[0]) == (place == "letterbox" and size != (12, 20))


def test_a_flip_alone_is_a_flip():
    record, processor = same(), maker(augment=MaskAugment(scale=(1, 1)))
    masks = [processor.example(record, np.random.default_rng(seed))["mask"] for seed in range(8)]
    flipped = [np.array_equal(m, record["mask"][:, ::-1]) for m in masks]
    assert 0 < sum(flipped) < 8
    assert all(flip or np.array_equal(m, record["mask"]) for flip, m in zip(flipped, masks, strict=True))


def test_batches_hold_masks_and_their_counts():
    processor, record = maker(), same()
    batch = processor.collate([processor.example(record)] * 2)
    assert batch["mask"].shape == (2, 12, 20)
    assert batch["targets"]["pixels"].tolist() == [np.bincount(record["mask"].ravel()).tolist()] * 2
    bare = processor.example({"id": "x", "image": record["image"]})
    assert set(processor.collate([bare])) == {"inputs"}
    with pytest.raises(UserError, match="1 of 2 records of a batch have no mask"):
        processor.collate([bare, processor.example(record)])


def test_masks_in_every_encoding():
    numbers = np.array([[0, 1, 3], [2, 255, 3]])
    palette = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    palette.putpalette([9] * 768)
    grey16 = Image.fromarray(numbers.astype(np.uint16))
    forms = [numbers, numbers[..., None].astype(np.int16), *map(encoded, (palette, grey16))]
    forms += [encoded(Image.fromarray(numbers.astype(np.uint8)), kind) for kind in ("PNG", "TIFF", "BMP")]
    for form in forms:
        found = mask_of({"mask": form}, 4)
        assert found.dtype == np.uint8 and np.array_equal(found, numbers)
    two = encoded(Image.fromarray(numbers == 3))
    assert np.array_equal(mask_of({"mask": two}, 2), numbers == 3)
    other = mask_of({"mask": np.where(numbers == 255, -1, numbers)}, 4, ignore=-1)
    assert np.array_equal(other, numbers)
    # A class may be what is ignored: 3 here, and then the numbers below it are all there are.
    assert mask_of({"mask": np.array([[0, 3], [2, 3]])}, 3, ignore=3).tolist() == [[0, IGNORED], [2, IGNORED]]


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.array([[0, 9], [7, 1]]), r"record 'r' has the values 7, 9: there are 4 classes.*255 is ignored"),
        (np.array([[0, -1]]), r"has the values -1"),
        (np.arange(20)[None], r"has the values 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"),
        (np.zeros((2, 2)), r"array of float64 \(2, 2\), and must be integers"),
        (np.zeros((2, 2, 3), int), r"array of int64 \(2, 2, 3\)"),
        (encoded(Image.new("RGB", (2, 2))), r"mode RGB, whose pixels are colours"),
        (b"no image", r"record 'r' cannot be decoded"),
        (np.zeros((12, 19), int), r"image of 20 × 12 pixels .* and a mask of 19 × 12"),
    ],
)
def test_wrong_masks_are_named(mask, said):
    with pytest.raises(UserError, match=said):
        maker().example({**same(), "mask": mask})


def test_wrong_options_are_named():
    wrong = dict(place="strech", size=(0, 3), ignore=True, augment=dict(flop=1))
    with pytest.raises(UserError) as error:
        maker(**wrong)
    text = str(error.value)
    assert all(word in text for word in ("Did you mean 'stretch'", "size is (0, 3)", "ignore is True", "'flip'"))
    with pytest.raises(UserError, match=r"scale is \(2, 1\)(.|\n)*ratio is 0"):
        maker(augment=dict(scale=(2, 1), ratio=0))
    with pytest.raises(UserError, match="there are 256 classes"):
        MaskProcessor(PLAIN, 256)
    with pytest.raises(UserError, match=r"one of images"):
        MaskProcessor(None, 4)
    with pytest.raises(UserError, match=r"set task.size"):
        MaskProcessor(ImageProcessor(size=None, resize="none"), 4)


@pytest.mark.parametrize("place", ["stretch", "letterbox"])
def test_a_prediction_returns_to_its_image(place):
    for height, width in ((24, 40), (6, 30), (30, 6)):
        mask = np.repeat(np.repeat(np.arange(4).reshape(2, 2), height // 2, 0), width // 2, 1).astype(np.uint8)
        processor = maker(place=place, size=(60, 60))
        label = processor.example({"id": "r", "image": mask, "mask": mask})["mask"]
        assert np.array_equal(at_image(label, (width, height), place), mask)


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a"):
        for kind, suffix, mode in (("images", "jpg", "RGB"), ("masks", "png", "L")):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new(mode, (6, 4)).save(tmp_path / kind / f"{name}.{suffix}")
    (tmp_path / "classes.txt").write_text("ground\ntree\n\n")
    return tmp_path


def test_mask_folders(folder, tmp_path_factory):
    source = open_source(f"mask_folder:{folder}")
    assert source.classes == ("ground", "tree") and [source.records[i]["id"] for i in range(2)] == ["a", "b"]
    assert source.records.labels() == [None, None]
    found = MaskProcessor(PLAIN, 2).example(source.records[0])
    assert found["mask"].max() == 0 and found["mask"].shape == (12, 20)
    root = tmp_path_factory.mktemp("splits")
    folder.rename(root / "val")
    split = open_source(f"mask_folder:{root}", split="val")
    assert split.classes is None and len(split.records) == 2
    for rest, name, said in ((root, "vall", "Did you mean 'val'"), (root / "val", "test", "no split 'test'")):
        with pytest.raises(UserError, match=said):
            open_source(f"mask_folder:{rest}", split=name)


def test_pairs_that_do_not_fit_are_named(folder):
    (folder / "images/a.jpg").rename(folder / "images/c.jpg")
    with pytest.raises(UserError, match=r"c\.jpg has no mask(.|\n)*a\.png has no image"):
        open_source(f"mask_folder:{folder}")
    (folder / "images/b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.jpg and b\.png have one name"):
        open_source(f"mask_folder:{folder}")
    (folder / "images/b.png").unlink()
    (folder / "masks").rename(folder / "annotations")
    with pytest.raises(UserError, match=r"no folder .*masks"):
        open_source(f"mask_folder:{folder}")
    with pytest.raises(UserError, match="neither"):
        open_source(f"mask_folder:{folder / 'annotations'}")
    with pytest.raises(UserError, match="has no columns"):
        open_source(f"mask_folder:{folder}", columns={"image": "x"})


def test_classes_that_are_no_list_are_named(folder):
    (folder / "classes.txt").write_text("ground\n\nground\n")
    with pytest.raises(UserError, match=r"line 2 is empty(.|\n)*line 3 repeats 'ground'"):
        open_source(f"mask_folder:{folder}")


def test_voc_masks(folder):
    (folder / "images").rename(folder / "JPEGImages")
    (folder / "masks").rename(folder / "SegmentationClass")
    (folder / "classes.txt").unlink()
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n")
    (lists / "val.txt").write_text("a\nz\n")
    source = open_source(f"voc_masks:{folder}")
    assert len(source.classes) == 21 and source.classes[15] == "person" and source.records[0]["id"] == "b"
    with pytest.raises(UserError, match=r"val\.txt(.|\n)*z has no image(.|\n)*z has no mask"):
        open_source(f"voc_masks:{folder}", split="val")
    with pytest.raises(UserError, match="no ImageSets"):
        open_source(f"voc_masks:{folder / 'JPEGImages'}")
