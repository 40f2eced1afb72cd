"""Images equal transformers' own processors, pixel by pixel; augmentation; decoding of odd files."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
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


def test_images_of_different_sizes_cannot_be_batched(photo):
    ours = ImageProcessor(size=None, resize="none")
    with pytest.raises(UserError, match="different sizes"):
        ours.collate([ours.example({"image": photo(8, n)}) for n in (8, 9)])
