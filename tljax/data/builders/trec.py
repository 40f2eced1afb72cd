"""TREC: what does a question ask for? Six classes (Li and Roth 2002)."""

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

# In the order of the numbers in the files of sent-conv-torch.
CLASSES = ("description", "entity", "abbreviation", "human", "location", "number")
URL = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data"
RAW = Raw(
    folder="text/sentconv",
    wanted=r"(?:.*/)?(TREC\.(?:train|test)\.all)",
    urls={name: f"{URL}/{name}" for name in ("TREC.train.all", "TREC.test.all")},
    digests={
        "TREC.train.all": "sha256:c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
        "TREC.test.all": "sha256:92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
    },
)


class Trec(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """5452 training and 500 test questions, in the spelling of Kim 2014 (tokens separated by spaces)."""

    name = "trec"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(RAW.urls)} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=CLASSES)},
            description=__doc__,
            homepage="https://cogcomp.seas.upenn.edu/Data/QA/QC/",
            licence="research use",
            citation="X. Li and D. Roth. Learning question classifiers. COLING 2002.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        return {split: self._generate_examples(files[f"TREC.{split}.all"]) for split in ("train", "test")}

    def _generate_examples(self, content: bytes):
        for i, line in enumerate(content.decode("latin-1").split("\n")):
            if line.strip():
                label, _, text = line.partition(" ")
                yield i, {"text": text.strip(), "label": int(label)}
