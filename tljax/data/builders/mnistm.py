"""MNIST-M: MNIST's digits over patches of photographs, 28 × 28 in colour (Ganin et al. 2016), as PNG."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.mnist import FILES, parse_idx
from tljax.data.builders.mnist import RAW as DIGITS
from tljax.data.builders.raw import Raw, fetch, make_info, png

PHOTOS = 200
SEEDS = {"train": 0, "test": 1}
RAW = Raw(
    folder="bsds500",
    wanted=r"(?:.*/)?train/(\d+\.jpg)",
    urls={
        "BSR_bsds500.tgz": "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
    },
)


def decode_photos(files: dict[str, bytes]) -> list[np.ndarray]:
    """The training photographs of BSDS500 by name, uint8 (H, W, 3); `UserError` where there are others."""
    from PIL import Image

    if len(files) != PHOTOS:
        raise UserError(f"BSDS500 has {PHOTOS} training photographs, and {RAW.folder} holds {len(files)}.")
    return [np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in sorted(files)]


def fetch_digits(download_manager: Any) -> dict[str, bytes]:
    """MNIST's files; `UserError` where they are neither in the data folder nor can be downloaded."""
    try:
        return fetch(DIGITS, download_manager)
    except UserError:
        raise
    except Exception as error:  # each protocol has its own exceptions, see tljax.data.prepare
        raise UserError(
            f"MNIST-M is made of MNIST, which is neither in the data folder ({DIGITS.folder}) nor could it be "
            f"downloaded: {type(error).__name__}: {error}\n{Mnistm.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        ) from error


def blend(digits: np.ndarray, photos: Sequence[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """|patch − digit| in each channel, one uint8 image (H, W, 3) a digit.

    Each digit has a patch of a photograph, both drawn evenly. Digit i gets the same patch whatever comes after it.

    Args:
      digits: uint8 (N, H, W).
      photos: uint8 arrays, none smaller than a digit.
      seed: of the draws.
    """
    height, width = digits.shape[1:]
    generator = np.random.default_rng(seed)
    for digit in digits:
        photo = photos[generator.integers(len(photos))]
        top = generator.integers(photo.shape[0] - height + 1)
        left = generator.integers(photo.shape[1] - width + 1)
        patch = photo[top : top + height, left : left + width]
        yield np.abs(patch.astype(np.int16) - digit[..., None]).astype(np.uint8)


class Mnistm(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60000 training and 10000 test images, in MNIST's order.

    Made here by the paper's recipe, from MNIST and the training photographs of BSDS500 (Arbeláez et al. 2011). The
    authors' own draws were not published, so the images are not theirs.
    """

    name = "mnistm"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put BSDS500's training photographs into {RAW.folder}/train, and MNIST's files into {DIGITS.folder}."
    )
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(shape=(28, 28, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            },
            description=__doc__,
            homepage="http://yaroslav.ganin.net",
            licence="non-commercial research (BSDS500); CC BY-SA 3.0 (MNIST)",
            citation="Y. Ganin et al. Domain-adversarial training of neural networks. JMLR 17, 2016.",
        )

    def _split_generators(self, dl_manager):
        photos = decode_photos(fetch(RAW, dl_manager))
        files = fetch_digits(dl_manager)
        return {
            split: self._generate_examples(*(parse_idx(files[name], name) for name in names), photos, SEEDS[split])
            for split, names in FILES.items()
        }

    def _generate_examples(self, digits: np.ndarray, labels: np.ndarray, photos: Sequence[np.ndarray], seed: int):
        for i, (image, label) in enumerate(zip(blend(digits, photos, seed), labels, strict=True)):
            yield i, {"image": png(image), "label": int(label)}
