"""STS benchmark: how alike are two sentences, from 0 to 5? English and German (Cer et al. 2017, May 2021)."""

import csv
import io

import numpy as np
import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

URL = "https://raw.githubusercontent.com/PhilipMay/stsb-multi-mt/30de0dec4ee199b7f42351d3f1a0b19592955385/data"
DIGESTS = {
    "de": {
        "dev": "40ddf84ce3d2dfb957e11687edea30e5567c542219998f906ee552cfd3ef6769",
        "test": "a92ce1015b201a342784ab7e34e024ceb0a0eeb479231fbadd05f756afb817fd",
        "train": "7a393283b1ec86d9919452bd793db2938831169b29f1584660c3d20e2ee2a53e",
    },
    "en": {
        "dev": "d29586e96558c4eb52cf5ea5d14e9c24d3bf0e44f111b017caba43a5adc33226",
        "test": "11523b625219e94e9ca05d2816b5f02cac1614c5894fe657376fa0806378d053",
        "train": "e1e84fec60bbb598735552f54a35f4949904a484750fd2cb11e2720e49f63da6",
    },
}
FOLDER = "text/stsb"


def _raw(language: str) -> Raw:
    digests = {f"stsb-{language}-{split}.csv": f"sha256:{digest}" for split, digest in DIGESTS[language].items()}
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?(stsb-{language}-(?:train|dev|test)\.csv)",
        urls={name: f"{URL}/{name}" for name in digests},
        digests=digests,
    )


class Stsb(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """5749 training, 1500 validation and 1379 test pairs, in the language that the config names."""

    name = "stsb"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="en", description="The English originals."),
        tfds.core.BuilderConfig(name="de", description="Translated to German by a machine (May 2021)."),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put stsb-LANGUAGE-SPLIT.csv into {FOLDER}."
    RAW = _raw("en")

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "text": tfds.features.Text(),
                "text_b": tfds.features.Text(),
                "label": tfds.features.Scalar(dtype=np.float32),
            },
            description=__doc__,
            homepage="https://github.com/PhilipMay/stsb-multi-mt",
            licence="CC BY-SA 4.0 for most sources",
            citation="D. Cer et al. SemEval-2017 task 1: semantic textual similarity. SemEval 2017.",
        )

    def _split_generators(self, dl_manager):
        language = self.builder_config.name
        files = fetch(_raw(language), dl_manager)
        parts = {"train": "train", "validation": "dev", "test": "test"}
        return {
            split: self._generate_examples(files[f"stsb-{language}-{part}.csv"]) for split, part in parts.items()
        }

    def _generate_examples(self, content: bytes):
        for i, (text, text_b, score) in enumerate(csv.reader(io.StringIO(content.decode("utf-8"), newline=""))):
            yield i, {"text": text, "text_b": text_b, "label": float(score)}
