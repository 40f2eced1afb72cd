"""Digits: the test part of the UCI handwritten digits, 8 × 8, as scikit-learn carries them, as PNG (Alpaydin 1998)."""

import numpy as np
import tensorflow_datasets as tfds

from tljax.data.builders.raw import make_info, png


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1797 images; 17 shades of grey, spread over 0 to 255. One split, `train` (in TFDS `all` is every split)."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = "scikit-learn"

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            },
            description=__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            licence="CC BY 4.0",
            citation="E. Alpaydin and C. Kaynak. Optical recognition of handwritten digits. UCI 1998.",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.rint(data.images * (255 / 16)).astype(np.uint8)
        for i, (image, digit) in enumerate(zip(images, data.target, strict=True)):
            yield i, {"image": png(image), "label": int(digit)}
