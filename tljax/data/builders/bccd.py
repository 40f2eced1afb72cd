"""BCCD: blood cells under a microscope, with a box around each (Shenggan 2017)."""

import re

import numpy as np
import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info
from tljax.data.detection_sets import Picture, check, parse_voc

CLASSES = ("RBC", "WBC", "Platelets")
LISTS = {"train": "train", "validation": "val", "test": "test"}
RAW = Raw(
    folder="bccd",
    wanted=r"(?:.*/)?((?:Annotations/[^/]+\.xml)|(?:JPEGImages/[^/]+\.jpg)|(?:ImageSets/Main/(?:train|val|test)\.txt))",
    urls={"bccd.zip": "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"},
    digests={
        "ImageSets/Main/train.txt": "sha256:89bda91b6f96f9678f29b0bfe42565e0bea073d0055e0210548f7bcb17183ede",
        "ImageSets/Main/val.txt": "sha256:34b01f4b5e492e9f49d8173379a8f6fe72efb8c3a7cc51048daddb06758154fa",
        "ImageSets/Main/test.txt": "sha256:9cadeca2bb1d186b22b27c56b14c95e46c4c44d0fbc7a918bf96af9fb5064742",
    },
)


class Bccd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """205 training, 87 validation and 72 test images of 640 × 480 pixels, with the official splits.

    Two of the 4888 boxes have no area (a slip of the mouse) and are left out.
    """

    name = "bccd"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put the folders Annotations, JPEGImages and ImageSets, archived, into {RAW.folder}."
    )
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(encoding_format="jpeg"),
                "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
                "id": tfds.features.Text(),
            },
            description=__doc__,
            homepage="https://github.com/Shenggan/BCCD_Dataset",
            licence="MIT",
            citation="Shenggan. BCCD dataset. 2017.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        return {split: self._generate_examples(files, name) for split, name in LISTS.items()}

    def _generate_examples(self, files: dict[str, bytes], name: str):
        for stem in re.findall(r"\S+", files[f"ImageSets/Main/{name}.txt"].decode()):
            file = f"Annotations/{stem}.xml"
            image, size, things = parse_voc(files[file], file)
            # In VOC's way of counting a box without area is one pixel.
            things = tuple(t for t in things if t.box[2] - t.box[0] > 1 and t.box[3] - t.box[1] > 1)
            (picture,) = check([Picture(None, stem, size, things)], CLASSES, cut=False, where="bccd", files=[file])
            yield (
                stem,
                {
                    "image": files[f"JPEGImages/{image}"],
                    "boxes": np.array([thing.box for thing in picture.things], np.float32).reshape(-1, 4),
                    "labels": [thing.name for thing in picture.things],
                    "id": stem,
                },
            )
