"""Banking77: 77 intents of a bank's customers (Casanueva et al. 2020)."""

import csv
import io
import json

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

URL = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/"
    "57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
)
RAW = Raw(
    folder="text/banking77",
    wanted=r"(?:.*/)?(train\.csv|test\.csv|categories\.json)",
    urls={name: f"{URL}/{name}" for name in ("train.csv", "test.csv", "categories.json")},
    digests={
        "categories.json": "sha256:53261da888122daf2d120d925458631d9619e15d82e56052e7a42e535ce32b63",
        "test.csv": "sha256:d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
        "train.csv": "sha256:b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    },
)


class Banking77(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """10003 training and 3080 test queries; the classes in the order of the publisher's categories.json."""

    name = "banking77"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(RAW.urls)} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=77)},
            description=__doc__,
            homepage="https://github.com/PolyAI-LDN/task-specific-datasets",
            licence="CC BY 4.0",
            citation="I. Casanueva et al. Efficient intent detection with dual sentence encoders. NLP4ConvAI 2020.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        self.info.features["label"].names = json.loads(files["categories.json"])
        return {split: self._generate_examples(files[f"{split}.csv"]) for split in ("train", "test")}

    def _generate_examples(self, content: bytes):
        rows = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
        for i, row in enumerate(rows):
            yield i, {"text": row["text"], "label": row["category"]}
