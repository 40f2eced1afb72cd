"""Images equal transformers' own processors, pixel by pixel; augmentation; decoding of odd files."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
from tljax.data.augment import COLOURS, GREY, RANDAUGMENT
from tljax.data.images import Augment, ImageProcessor
from tljax.data.processors import load_processor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONFIGS = {
    "ViT": [
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "resample": 2},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 56}, **IMAGENET},
        {"image_processor_type": "ViTImageProcessorFast", "size": 48, "do_normalize": False, "rescale_factor": 0.01},
        {"image_processor_type": "ViTImageProcessor", "size": 48, "do_rescale": False, "do_normalize": False},
    ],
    "DeiT": [
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 64, "crop_size": 56, "do_center_crop": True},
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 64, "width": 64}, **IMAGENET}
        | {"crop_size": {"height": 56, "width": 56}},
    ],
    "ConvNext": [
        {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 56, **IMAGENET},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 57}, "crop_pct": 0.9},
    ],
    "CLIP": [
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 50}, "crop_size": 50},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 64},
    ],
}
SIZES = [(60, 90), (97, 41), (48, 48)]


def _folder(tmp_path, config):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    return tmp_path


def _reference(folder, kind):
    import transformers

    return getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(str(folder))


@pytest.mark.parametrize(("kind", "config"), [(kind, config) for kind in CONFIGS for config in CONFIGS[kind]])
def test_pixels_equal_transformers(tmp_path, photo, kind, config):
    reference = _reference(_folder(tmp_path, config), kind)
    ours = load_processor(tmp_path, {})
    ours.save(tmp_path / "again")
    again = load_processor(tmp_path / "again", {})
    written = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    rewritten = _reference(tmp_path / "again", written["image_processor_type"].removesuffix("ImageProcessor"))
    for height, width in SIZES:
        image = photo(height, width)
        expected = reference(Image.open(io.BytesIO(image)), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = ours.example({"image": image})["pixel_values"]
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
        np.testing.assert_array_equal(again.example({"image": image})["pixel_values"], found)
        saved = rewritten(Image.open(io.BytesIO(image)), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(saved, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_grey_files_transparency_and_arrays_become_three_channels(photo):
    ours = ImageProcessor(size=16, mean=0.0, std=1.0)
    grey = ours.example({"image": photo(16, 16, "PNG", "L")})["pixel_values"]
    assert grey.shape == (16, 16, 3)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    for mode in ("RGBA", "P", "LA", "1", "CMYK"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert ours.example({"image": photo(16, 16, kind, mode)})["pixel_values"].shape == (16, 16, 3)
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for shape in ((16, 16), (16, 16, 1)):
        found = ours.example({"image": array.reshape(shape)})["pixel_values"]
        np.testing.assert_allclose(found[..., 1], array / 255, atol=1e-6)
    with pytest.raises(UserError, match=r"array of float64 \(4, 4\)"):
        ours.example({"image": np.zeros((4, 4))})
    with pytest.raises(UserError, match="'r' holds no image"):
        ours.example({"text": "a", "id": "r"})


def test_sixteen_bits_are_scaled_not_clipped():
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    found = ImageProcessor(size=16, mean=0.0, std=1.0).example({"image": buffer.getvalue()})["pixel_values"]
    np.testing.assert_allclose(found[..., 0], np.arange(256).reshape(16, 16) / 255, atol=1e-6)


def test_the_orientation_of_a_camera_is_respected():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))  # red, blue
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 3  # turned by half
    image.save(buffer, format="PNG", exif=exif)
    found = ImageProcessor(size=None, resize="none", mean=0.0, std=1.0).example({"image": buffer.getvalue()})
    np.testing.assert_allclose(found["pixel_values"][0, :, 0], [0, 1])


def test_channel_orders(photo):
    image = photo(8, 8)
    rgb, bgr, grey = (
        ImageProcessor(size=8, channels=c, mean=0.5, std=0.5).example({"image": image})["pixel_values"]
        for c in ("RGB", "BGR", "L")
    )
    np.testing.assert_array_equal(rgb[..., ::-1], bgr)
    assert grey.shape == (8, 8, 1)
    with pytest.raises(UserError, match="no image processor for one channel"):
        ImageProcessor(channels="L", mean=0.5, std=0.5).save("/nowhere")


def test_a_new_size_keeps_the_share_that_the_crop_keeps():
    convnext = ImageProcessor(size=224, resize="shortest", resize_to=256)
    assert convnext.replace(size=112).resize_to == 128
    assert convnext.replace(size=112, resize_to=112).resize_to == 112
    deit = ImageProcessor(size=224, resize_to=256)
    assert deit.replace(size=[112, 112]).resize_to == (128, 128)
    assert ImageProcessor().replace(size=32).size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"siez": 3}, "siez is not one of them. Did you mean 'size'"),
        ({"size": -3}, "must be pixels"),
        ({"size": (3, 4, 5)}, "must be pixels"),
        ({"resize": "fit"}, "resize is 'fit'"),
        ({"resample": "bicubik"}, "Did you mean 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values, and RGB has 3"),
        ({"std": 0.0}, "std has a zero"),
        ({"augment": {"flop": True}}, "augment.flop does not exist. Did you mean 'flip'"),
        ({"augment": ["flip"]}, "must be a dict of flip, crop"),
        (
            {"augment": {"hue": 0.6, "blur_sigma": (2, 1), "blur": 2}},
            r"(?s)blur is 2.*hue is 0\.6.*blur_sigma is \(2, 1\)",
        ),
        ({"augment": {"brightness": 1.5}}, "augment.brightness is 1.5, and must be from 0 to 1"),
        ({"augment": {"crop": -1}}, "augment.crop is -1"),
        ({"augment": {"resized_crop": (0.5, 2)}}, "augment.resized_crop is"),
        ({"augment": {"randaugment": (2, 11)}}, "augment.randaugment is .*a number from 0 to 10"),
        ({"augment": {"randaugment": 2}}, "augment.randaugment is"),
        ({"channels": "L", "mean": 0.5, "std": 0.5, "augment": {"hue": 0.1}}, "augment.hue changes colours"),
        ({"size": None}, "without a size"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        ImageProcessor().replace(**options)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"size": "big"}, "the size 'big'"), ({"resample": 9}, "resample is 9"), ({"do_pad": True}, "do_pad")],
)
def test_wrong_files(tmp_path, config, message):
    with pytest.raises(UserError, match=f"preprocessor_config.json.*{message}"):
        load_processor(_folder(tmp_path, config), {})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_processor(tmp_path, {})


def test_augmentation_needs_a_generator_and_is_decided_by_it(photo):
    record = {"image": photo(32, 32)}
    plain = ImageProcessor(size=32)
    for augment in (Augment(flip=True), Augment(crop=4), Augment(resized_crop=(0.2, 1.0))):
        ours = plain.replace(augment=augment._asdict())
        np.testing.assert_array_equal(ours.example(record)["pixel_values"], plain.example(record)["pixel_values"])
        seen = [ours.example(record, np.random.default_rng(i))["pixel_values"] for i in range(8)]
        again = [ours.example(record, np.random.default_rng(i))["pixel_values"] for i in range(8)]
        np.testing.assert_array_equal(seen, again)
        assert all(x.shape == (32, 32, 3) for x in seen)
        assert len({x.tobytes() for x in seen}) > 1


def test_what_augmentation_does(photo):
    record = {"image": photo(16, 16)}
    plain = ImageProcessor(size=16, mean=0.0, std=1.0)
    before = plain.example(record)["pixel_values"]
    flipping = plain.replace(augment={"flip": True})
    flipped = [flipping.example(record, np.random.default_rng(i))["pixel_values"] for i in range(200)]
    turned = sum(np.array_equal(x, before[:, ::-1]) for x in flipped)
    assert turned + sum(np.array_equal(x, before) for x in flipped) == 200
    assert 70 < turned < 130
    shifted = plain.replace(augment={"crop": 3}).example(record, np.random.default_rng(1))["pixel_values"]
    padded = np.pad(before, [(3, 3), (3, 3), (0, 0)])
    places = [(i, j) for i in range(7) for j in range(7)]
    assert sum(np.array_equal(shifted, padded[i : i + 16, j : j + 16]) for i, j in places) == 1


STRONG = (
    dict(brightness=0.8, contrast=0.8),
    dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, colour_chance=0.8, gray=0.2, blur=0.5),
    dict(randaugment=(2, 10)),
    dict(randaugment=[3, [1, 10]], cutout=0.5),
    dict(flip=True, crop=4, resized_crop=(0.3, 1.0), randaugment=(1, 5), blur=1.0, blur_sigma=(1, 1)),
)


@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_strong_changes_are_decided_by_the_generator(photo, channels):
    record = {"image": photo(32, 24)}
    plain = ImageProcessor(size=(32, 24), channels=channels, mean=0.0, std=1.0)
    for options in STRONG:
        if channels == "L":
            options = {name: x for name, x in options.items() if name not in ("saturation", "hue", "gray")}
        ours = plain.replace(augment=options)
        hash(ours)  # lists from a config become tuples
        np.testing.assert_array_equal(ours.example(record)["pixel_values"], plain.example(record)["pixel_values"])
        seen, again = (
            [ours.example(record, np.random.default_rng(i))["pixel_values"] for i in range(10)] for _ in range(2)
        )
        np.testing.assert_array_equal(seen, again)
        assert np.shape(seen) == (10, 32, 24, 1 if channels == "L" else 3)
        assert min(map(np.min, seen)) >= 0 and max(map(np.max, seen)) <= 1
        assert len({x.tobytes() for x in seen}) > 5


def test_the_older_options_draw_what_they_drew(photo):
    # Written out anew: the part of the image, then the padded crop, then the flip, from one generator.
    record, share = {"image": photo(40, 40)}, (0.3, 0.9)
    ours = ImageProcessor(size=16, mean=0.0, std=1.0, augment=dict(flip=True, crop=2, resized_crop=share))
    for seed in range(5):
        found = ours.example(record, np.random.default_rng(seed))["pixel_values"]
        rng, image = np.random.default_rng(seed), Image.open(io.BytesIO(record["image"]))
        while True:
            area, ratio = 1600 * rng.uniform(*share), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if w <= 40 and h <= 40:
                break
        left, top = rng.integers(0, 40 - w + 1), rng.integers(0, 40 - h + 1)
        cut = image.resize((16, 16), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        padded = np.pad(np.asarray(cut), [(2, 2), (2, 2), (0, 0)])
        i, j = rng.integers(0, 5, 2)
        expected = padded[i : i + 16, j : j + 16]
        expected = expected[:, ::-1] if rng.random() < 0.5 else expected
        np.testing.assert_array_equal(found, expected * np.float32(1 / 255))


def test_colours_change_as_their_formulas_say(photo):
    image = Image.open(io.BytesIO(photo(12, 12)))
    pixels = np.asarray(image, float)
    grey = np.asarray(image.convert("L"), float)[..., None]
    mixed = {"brightness": 0 * pixels, "contrast": 0 * pixels + round(grey.mean()), "saturation": grey + 0 * pixels}
    for name, other in mixed.items():
        for amount in (-0.5, 0.4, -1.0):
            expected = np.clip(other + (1 + amount) * (pixels - other), 0, 255)
            found = np.asarray(COLOURS[name](image, amount), float)
            assert np.abs(found - expected).max() <= 1.01, name
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for share, expected in ((1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.5, (0, 255, 255))):
        assert np.abs(np.asarray(COLOURS["hue"](red, share), int) - expected).max() <= 6  # one of 256 steps


def test_shapes_change_by_the_amount_that_was_asked_for():
    pixels = np.zeros((21, 21), np.uint8)
    pixels[10, 14] = 255  # four pixels to the right of the centre
    image = Image.fromarray(pixels)
    change = {name: lambda amount, f=f: np.asarray(f(image, amount)) for name, (f, _, _) in RANDAUGMENT.items()}
    assert np.argwhere(change["rotate"](90) > 200).tolist() in ([[6, 10]], [[14, 10]])
    assert np.argwhere(change["translate_x"](3 / 21) == 255).tolist() == [[10, 11]]
    moved = change["translate_y"](-3 / 21)
    assert np.argwhere(moved == 255).tolist() == [[13, 14]]
    assert (moved[:3] == GREY).all() and not (moved[3:] == GREY).any()
    assert np.argwhere(change["shear_y"](0.25) > 200).tolist() == [[9, 14]], "four pixels from the centre: by one"
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    values = np.arange(256)
    for name, amount, expected in (
        ("posterize", 4, values & 0xF0),
        ("solarize", 56, np.where(values < 200, values, 255 - values)),
        ("autocontrast", 0, values),
    ):
        np.testing.assert_array_equal(np.asarray(RANDAUGMENT[name][0](ramp, amount)).ravel(), expected)


def test_no_magnitude_leaves_an_image_as_it_is(photo):
    image = Image.open(io.BytesIO(photo(12, 16)))
    for name, (change, most, _) in RANDAUGMENT.items():
        if most:
            np.testing.assert_array_equal(np.asarray(change(image, 0.0)), np.asarray(image), err_msg=name)


def test_cutout_covers_a_square_around_a_pixel(photo):
    plain = ImageProcessor(size=16, mean=0.0, std=1.0)
    record = {"image": photo(16, 16)}
    before, ours = plain.example(record)["pixel_values"], plain.replace(augment={"cutout": 0.5})
    sizes = set()
    for seed in range(60):
        found = ours.example(record, np.random.default_rng(seed))["pixel_values"]
        rows, columns = np.nonzero((found != before).any(-1))
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        np.testing.assert_array_equal(found[box], np.float32(GREY) * np.float32(1 / 255))
        sizes.add(found[box].shape[:2])
    assert max(sizes) == (8, 8) and min(min(size) for size in sizes) == 4


def test_chances_are_kept(photo):
    record, plain = {"image": photo(8, 8)}, ImageProcessor(size=8, mean=0.0, std=1.0)
    before = plain.example(record)["pixel_values"]
    hue = dict(hue=0.5, colour_chance=0.8)
    drawn = ((dict(gray=0.2), 0.2), (dict(invert=0.3), 0.3), (dict(blur=0.5), 0.5), (hue, 0.8))
    for options, share in drawn:
        ours = plain.replace(augment=options)
        seen = [ours.example(record, np.random.default_rng(i))["pixel_values"] for i in range(300)]
        changed = [not np.array_equal(x, before) for x in seen]
        assert abs(np.mean(changed) - share) < 0.09
        if "gray" in options:
            assert all(np.ptp(x, axis=-1).max() == 0 for x, is_gray in zip(seen, changed, strict=True) if is_gray)
        if "invert" in options:
            turned = [x for x, is_inverted in zip(seen, changed, strict=True) if is_inverted]
            np.testing.assert_allclose(turned, [1 - before] * len(turned), atol=1e-6)


@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_an_opened_record_is_not_decoded_again(photo, channels, monkeypatch):
    colours = {"mean": 0.3, "std": 0.7} if channels == "L" else {"mean": (0.1, 0.2, 0.4), "std": (0.5, 0.3, 0.7)}
    plain = ImageProcessor(size=12, channels=channels, **colours)
    record = {"id": 3, "image": photo(16, 20), "label": 1}
    views = [plain.replace(augment=x) for x in (dict(flip=True, crop=2), dict(resized_crop=(0.3, 1.0), contrast=0.5))]

    def seen(record):
        rng = np.random.default_rng(0)
        return [view.example(record, rng)["pixel_values"] for view in views]

    expected, opened = seen(record), plain.opened(record)
    monkeypatch.delattr(Image, "open")
    for ours, wanted in zip(seen(opened), expected, strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert opened["label"] == 1 and isinstance(record["image"], bytes)


def test_images_of_different_sizes_cannot_be_batched(photo):
    ours = ImageProcessor(size=None, resize="none")
    with pytest.raises(UserError, match="different sizes"):
        ours.collate([ours.example({"image": photo(8, n)}) for n in (8, 9)])
