"""Hymenoptera: photographs of ants and bees, a small subset of ImageNet (Chilamkurthy 2017)."""

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

CLASSES = ("ants", "bees")
RAW = Raw(
    folder="hymenoptera",
    wanted=r"(?:.*/)?((?:train|val)/(?:ants|bees)/[^/.][^/]*\.jpe?g)",
    urls={"hymenoptera_data.zip": "https://download.pytorch.org/tutorial/hymenoptera_data.zip"},
)


class Hymenoptera(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """244 training and 153 validation photographs, in the size in which the raw files are."""

    name = "hymenoptera"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the folders train and val into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "id": tfds.features.Text(),
            },
            description=__doc__,
            homepage="https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html",
            licence="research, non-commercial",
            citation="S. Chilamkurthy. Transfer learning for computer vision. PyTorch tutorials 2017.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        parts = {"train": "train/", "validation": "val/"}
        return {
            split: self._generate_examples({n: files[n] for n in sorted(files) if n.startswith(prefix)})
            for split, prefix in parts.items()
        }

    def _generate_examples(self, files: dict[str, bytes]):
        for name, content in files.items():
            yield name, {"image": content, "label": name.split("/")[1], "id": name}
