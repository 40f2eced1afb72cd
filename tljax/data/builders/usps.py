"""USPS: handwritten digits of American postcodes, 16 × 16 (Hull 1994), as PNG."""

import bz2
import io

import numpy as np
import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info, png

URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass"
COUNTS = {"train": 7291, "test": 2007}
RAW = Raw(
    folder="usps",
    wanted=r"(?:.*/)?(usps\.h5|usps\.bz2|usps\.t\.bz2)",
    urls={name: f"{URL}/{name}" for name in ("usps.bz2", "usps.t.bz2")},
)


def parse_libsvm(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(pixels from 0 to 1, digits) of a libsvm file whose values go from -1 to 1 and whose labels from 1 to 10."""
    pixels, digits = [], []
    for line in content.splitlines():
        label, *pairs = line.split()
        row = np.zeros(256)
        for pair in pairs:
            place, value = pair.split(b":")
            row[int(place) - 1] = float(value)
        pixels.append((row + 1) / 2)
        digits.append(int(label) - 1)
    return np.array(pixels), np.array(digits)


def parse_h5(content: bytes, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(pixels from 0 to 1, digits) of the group `split` of usps.h5."""
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            return file[f"{split}/data"][:], file[f"{split}/target"][:]
    except (OSError, KeyError) as error:
        raise UserError(f"usps.h5 cannot be read: {error}") from error


class Usps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """7291 training and 2007 test images; black background."""

    name = "usps"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put usps.h5, or {' and '.join(RAW.urls)}, into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(shape=(16, 16, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            },
            description=__doc__,
            homepage=f"{URL}.html#usps",
            licence="research use",
            citation="J. J. Hull. A database for handwritten text recognition research. IEEE TPAMI 1994.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        parts = {}
        for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
            if "usps.h5" in files:
                pixels, digits = parse_h5(files["usps.h5"], split)
            elif name in files:
                pixels, digits = parse_libsvm(bz2.decompress(files[name]))
            else:
                raise UserError(f"USPS needs {name} beside the other file, or usps.h5.")
            if pixels.shape != (COUNTS[split], 256):
                raise UserError(f"USPS {split}: expected {(COUNTS[split], 256)} values, got {pixels.shape}.")
            parts[split] = self._generate_examples(pixels, digits)
        return parts

    def _generate_examples(self, pixels: np.ndarray, digits: np.ndarray):
        images = np.rint(pixels.reshape(-1, 16, 16) * 255).astype(np.uint8)
        for i, (image, digit) in enumerate(zip(images, digits, strict=True)):
            yield i, {"image": png(image), "label": int(digit)}
