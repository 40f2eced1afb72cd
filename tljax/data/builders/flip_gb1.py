"""GB1: how well does a protein with four changed sites bind? Wu et al. 2016; splits of FLIP (Dallago et al. 2021)."""

import csv
import io

import numpy as np
import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

URL = "https://github.com/J-SNACKKB/FLIP/raw/main/splits/gb1/splits.zip"
DIGESTS = {
    "low_vs_high": "190217d19cdafec40d8a961fce2dcbfd9fc89c9f4c6fa994aa90861b06e073fa",
    "one_vs_rest": "e901db7f88f5851f6d5177ca78d8ba9c7b01b4712cd553cb309f29a34f569d02",
    "sampled": "19bcb946fb9f8fe5ac1d5ed0aa85d4a85848b44744560d9684cc278935f3bd16",
    "three_vs_rest": "b8aa60cc061013a5c2e6f4070593c82976b1d9e5c9058a66ad57c6e9c3cec023",
    "two_vs_rest": "b368e4564e10e33735f897c9b63f1be7030082e565c6d4e1368d6f1641a310de",
}
DESCRIPTIONS = {
    "low_vs_high": "Trained below the wild type's fitness, tested above it.",
    "one_vs_rest": "Trained on the wild type and single changes.",
    "sampled": "At random.",
    "three_vs_rest": "Trained on up to three changes, tested on four.",
    "two_vs_rest": "Trained on up to two changes.",
}
SITES = (38, 39, 40, 53)
"""The positions, from 0 on, at which the sequences differ."""
FOLDER = "flip_gb1"


def _raw(split: str) -> Raw:
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?({split}\.csv)",
        urls={"splits.zip": URL},
        digests={f"{split}.csv": f"sha256:{DIGESTS[split]}"},
    )


class FlipGb1(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """8733 variants of protein G, domain B1: sequences of 265 amino acids, and their fitness."""

    name = "flip_gb1"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name, description=description) for name, description in DESCRIPTIONS.items()
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put splits.zip of FLIP's gb1 into {FOLDER}."
    RAW = _raw("two_vs_rest")

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text(), "label": tfds.features.Scalar(dtype=np.float32)},
            description=__doc__,
            homepage="https://benchmark.protein.properties",
            licence="AFL-3.0; the measurements CC BY 4.0",
            citation="C. Dallago et al. FLIP: benchmark tasks in fitness landscape inference. NeurIPS 2021.",
        )

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        content = fetch(_raw(name), dl_manager)[f"{name}.csv"].decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
        parts = {
            "train": [row for row in rows if row["set"] == "train" and row["validation"] != "True"],
            "validation": [row for row in rows if row["set"] == "train" and row["validation"] == "True"],
            "test": [row for row in rows if row["set"] == "test"],
        }
        return {split: self._generate_examples(part) for split, part in parts.items()}

    def _generate_examples(self, rows: list[dict[str, str]]):
        for i, row in enumerate(rows):
            yield i, {"text": row["sequence"].strip(), "label": float(row["target"])}
