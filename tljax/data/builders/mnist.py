"""MNIST: handwritten digits, 28 × 28 (LeCun et al. 1998), as PNG."""

import numpy as np
import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info, png

# The authors' own address answers no more; this is the mirror that torchvision uses.
URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
RAW = Raw(
    folder="mnist",
    wanted=r"(?:.*/)?((?:train|t10k)-(?:images-idx3|labels-idx1)-ubyte\.gz)",
    urls={name: f"{URL}/{name}" for names in FILES.values() for name in names},
    digests={
        "train-images-idx3-ubyte.gz": "md5:6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "md5:a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "md5:2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "md5:27ae3e4e09519cfbb04c329615203637",
    },
)


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """The array of an uncompressed idx file of unsigned bytes: a big-endian header, then the values."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError(f"{name} is not an idx file of unsigned bytes.")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise UserError(f"{name} holds {values.size} values, and its header says {tuple(map(int, shape))}.")
    return values.reshape(shape)


class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60000 training and 10000 test images."""

    name = "mnist"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(RAW.urls)} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
            },
            description=__doc__,
            homepage="http://yann.lecun.com/exdb/mnist/",
            licence="CC BY-SA 3.0",
            citation="Y. LeCun et al. Gradient-based learning applied to document recognition. Proc. IEEE 1998.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        return {
            split: self._generate_examples(*(parse_idx(files[name], name) for name in names))
            for split, names in FILES.items()
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": png(image), "label": int(label)}
