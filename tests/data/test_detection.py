"""Boxes move with their image: the pixels that a box surrounds stay inside of it, and come back."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.detection import BoxAugment, BoxProcessor, image_size, placement
from tljax.data.images import ImageProcessor
from tljax.data.streams import eval_stream, train_stream
from tljax.models import boxes as geometry

BOXES = np.array([[8, 6, 30, 20], [40, 30, 60, 44]], np.float32)
COLOURS = ((255, 0, 0), (0, 0, 255))


def record(number: int = 0, **changes) -> dict:
    """A green image of 64 × 48 pixels with a red and a blue rectangle, and their boxes."""
    pixels = np.full((48, 64, 3), (0, 255, 0), np.uint8)
    for (x0, y0, x1, y1), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        pixels[y0:y1, x0:x1] = colour
    return {"id": number, "image": pixels, "boxes": BOXES, "labels": [0, 1], **changes}


def reader(size=(32, 64), **options) -> ImageProcessor:
    return ImageProcessor(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, resample="nearest", **options)


def extent(pixels: np.ndarray, colour: int) -> list[float]:
    """The box around the pixels of a colour, as shares."""
    other = [channel for channel in range(3) if channel != colour]
    on = (pixels[..., colour] > 0.5) & (pixels[..., other] < 0.4).all(-1)
    rows, columns = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
    height, width = on.shape
    return [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]


@pytest.mark.parametrize("place", ["stretch", "letterbox"])
@pytest.mark.parametrize("target", [(32, 64), (64, 32), (48, 64)])
def test_boxes_lie_around_what_they_surrounded(place, target):
    processor = BoxProcessor(reader(target), place=place, max_boxes=3)
    found = processor.example(record())
    assert found["pixel_values"].shape == (*target, 3)
    assert found["labels"].tolist() == [0, 1, -1] and not found["boxes"][2].any()
    for box, colour in zip(found["boxes"], (0, 2), strict=False):
        np.testing.assert_allclose(box, extent(found["pixel_values"], colour), atol=1.01 / 32)
    back = placement((64, 48), target, place).pixels(found["boxes"][:2], (64, 48))
    np.testing.assert_allclose(back, BOXES, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (200, 10), (500, 333)])
def test_placements_are_those_of_the_models(size):
    for how in ("stretch", "letterbox"):
        mapping = getattr(geometry, how)(size[::-1], (96, 64))
        ours = placement(size, (96, 64), how)
        np.testing.assert_allclose(ours.scale, mapping.scale, rtol=1e-6)
        np.testing.assert_allclose(ours.shift, mapping.shift)
        theirs = geometry.map_boxes(jnp.asarray(BOXES), mapping) / jnp.array([64, 96, 64, 96])
        np.testing.assert_allclose(ours.place(BOXES), theirs, rtol=1e-5, atol=1e-6)


def test_augmented_boxes_follow_the_pixels():
    processor = BoxProcessor(reader((96, 128)), max_boxes=2, augment=dict(scale=(0.6, 1.3), colour=0.1, visible=0.8))
    flips, counts = 0, set()
    for seed in range(30):
        found = processor.example(record(), np.random.default_rng(seed))
        counts.add(int((found["labels"] >= 0).sum()))
        for box, label in zip(found["boxes"], found["labels"], strict=True):
            if label >= 0:
                assert (box >= 0).all() and (box <= 1).all()
                np.testing.assert_allclose(box, extent(found["pixel_values"], 2 * label), atol=0.03)
        if (found["labels"] >= 0).all():
            flips += found["boxes"][0, 0] > found["boxes"][1, 0]
    assert 3 < flips < 27 and counts == {0, 1, 2}
    plain, whole = BoxProcessor(reader(), max_boxes=2), BoxAugment(flip=False, scale=(1, 1), ratio=1.0, colour=0.0)
    same = plain.replace(augment=whole).example(record(), np.random.default_rng(0))
    np.testing.assert_array_equal(same["pixel_values"], plain.example(record())["pixel_values"])
    np.testing.assert_array_equal(same["boxes"], plain.example(record())["boxes"])


def test_streams_give_targets_and_only_training_is_random():
    source = Source([record(i) for i in range(5)], ("a", "b"), "s")
    processor = BoxProcessor(reader(), max_boxes=4, augment=BoxAugment())
    batch = next(train_stream(source, processor, batch_size=4, seed=1))
    assert batch["inputs"]["pixel_values"].shape == (4, 32, 64, 3)
    assert {name: x.shape for name, x in batch["targets"].items()} == {
        "boxes": (4, 4, 4),
        "labels": (4, 4),
        "ignore": (4, 4),
    }
    assert np.ptp(batch["inputs"]["pixel_values"], axis=0).max() > 0.1
    again = next(train_stream(source, processor, batch_size=4, seed=1))
    np.testing.assert_array_equal(batch["targets"]["boxes"], again["targets"]["boxes"])
    *_, last = eval_stream(source, processor, batch_size=4)
    assert last["weight"].tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(last["targets"]["boxes"][0], processor.example(record())["boxes"])
    unlabelled = Source([{"id": 0, "image": record()["image"]}], ("a", "b"), "s")
    assert "targets" not in next(eval_stream(unlabelled, processor, batch_size=1))


def test_grey_and_blue_first_images():
    grey = BoxProcessor(ImageProcessor(size=16, channels="L", mean=(0.0,), std=(1.0,)), augment=BoxAugment())
    assert grey.example(record(), np.random.default_rng(0))["pixel_values"].shape == (16, 16, 1)
    blue = BoxProcessor(reader(channels="BGR")).example(record())["pixel_values"]
    np.testing.assert_array_equal(blue[..., ::-1], BoxProcessor(reader()).example(record())["pixel_values"])


def test_sizes_are_those_of_the_upright_image():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    turned = {"id": 0, "image": buffer.getvalue()}
    assert image_size(turned) == ImageProcessor().decode(turned).size == (10, 20)
    assert image_size(record()) == (64, 48)


def test_bad_boxes_are_named():
    processor = BoxProcessor(reader(), max_boxes=2)
    bad = [[-1, 0, 5, 5], [3, 3, 3, 9], [0, 0, 65, 9], [0, 0, np.nan, 9]]
    with pytest.raises(UserError) as error:
        processor.example(record("x7", boxes=bad, labels=[0] * 4))
    text = str(error.value)
    assert "'x7'" in text and "there are 4 boxes, and max_boxes is 2" in text
    for part in ("box 0: (-1, 0, 5, 5) reaches", "box 1: (3, 3, 3, 9) is empty", "box 2", "box 3: (0, 0, nan, 9)"):
        assert part in text
    with pytest.raises(UserError, match="2 boxes, 1 labels"):
        processor.example(record(labels=[0]))
    with pytest.raises(UserError, match="Did you mean 'letterbox'"):
        BoxProcessor(reader(), place="leterbox")
    with pytest.raises(UserError, match=r"(?s)augment\.flipp.*Did you mean 'flip'"):
        BoxProcessor(reader(), augment={"flipp": True})
    with pytest.raises(UserError, match=r"(?s)augment\.scale.*augment\.ratio.*augment\.visible"):
        BoxProcessor(reader(), augment=BoxAugment(scale=(0, 1), ratio=0.5, visible=1.0))
    with pytest.raises(UserError, match="with a size"):
        BoxProcessor(ImageProcessor(size=None, resize="none"))
