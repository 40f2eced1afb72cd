"""Seven sets of short texts for classification, as Kim 2014 uses them: MR, SUBJ, CR, MPQA, TREC, SST-2 and SST-5."""

import hashlib
import re
from typing import NamedTuple

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info
from tljax.data.builders.trec import CLASSES as QUESTIONS

URL = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data"
FOLDER = "text/sentconv"
DIGESTS = {
    "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
    "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "custrev.all": "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325",
    "mpqa.all": "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7",
    "rt-polarity.all": "b8846c3bbd59241f901efdc58f7c515e4b280ab3561fd1858caa5aa48da95a8a",
    "stsa.binary.dev": "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
    "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
    "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
    "stsa.fine.dev": "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3",
    "stsa.fine.test": "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73",
    "stsa.fine.train": "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee",
    "subj.all": "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c",
}
SPLITS = ("train", "validation", "test")
SST = {"train": "stsa.fine.train", "validation": "stsa.fine.dev", "test": "stsa.fine.test"}
TELLING = 20
"""Letters from which on a sentence is known again as part of a text: "no ." stands in many."""
POLARITY = ("negative", "positive")


class Set(NamedTuple):
    """One of the seven.

    Attributes:
      about: one line.
      classes: in the order of the files' numbers.
      citation: who published it.
      files: split → file, where the publisher made splits.
      whole: the one file, where there are none.
    """

    about: str
    classes: tuple[str, ...]
    citation: str
    files: dict[str, str] = {}  # noqa: RUF012
    whole: str = ""


SOCHER = "R. Socher et al. Recursive deep models for semantic compositionality. EMNLP 2013."
SETS = {
    "mr": Set("Film reviews by polarity.", POLARITY, "B. Pang and L. Lee. ACL 2005.", whole="rt-polarity.all"),
    "subj": Set(
        "Sentences about films: an opinion, or the plot?",
        ("subjective", "objective"),
        "B. Pang and L. Lee. ACL 2004.",
        whole="subj.all",
    ),
    "cr": Set("Reviews of products by polarity.", POLARITY, "M. Hu and B. Liu. KDD 2004.", whole="custrev.all"),
    "mpqa": Set("Opinion phrases by polarity.", POLARITY, "J. Wiebe et al. LREC 2005.", whole="mpqa.all"),
    "trec": Set(
        "Questions by what they ask for; training and test are official.",
        QUESTIONS,
        "X. Li and D. Roth. COLING 2002.",
        {"train": "TREC.train.all", "test": "TREC.test.all"},
    ),
    "sst2": Set(
        "Film reviews by polarity, whole sentences; the official splits.",
        POLARITY,
        SOCHER,
        {"train": "stsa.binary.train", "validation": "stsa.binary.dev", "test": "stsa.binary.test"},
    ),
    "sst5": Set(
        "Film reviews by polarity in five degrees, whole sentences; the official splits.",
        ("very negative", "negative", "neutral", "positive", "very positive"),
        SOCHER,
        SST,
    ),
}
"""Name of the config → set."""


def _raw(name: str) -> Raw:
    files = [*SETS[name].files.values()] or [SETS[name].whole, *SST.values()]
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?({'|'.join(map(re.escape, files))})",
        urls={file: f"{URL}/{file}" for file in files},
        digests={file: f"sha256:{DIGESTS[file]}" for file in files},
    )


def parse(name: str, content: bytes) -> list[tuple[int, str]]:
    """(label, text) of each line. The files of SST are UTF-8, the others come from Windows."""
    lines = content.decode("utf-8" if name.startswith("stsa.") else "cp1252").split("\n")
    pairs = [line.partition(" ") for line in lines if line.strip()]
    return [(int(label), text.strip()) for label, _, text in pairs]


def key_of(text: str) -> str:
    """What two spellings of a sentence have in common: its letters and digits of ASCII, small."""
    return re.sub(r"-[lr]rb-|[^a-z0-9]", "", text.lower())  # SST writes brackets as the Penn treebank does


def split_of(text: str, official: dict[str, str]) -> str:
    """The split of a text of a set without official ones.

    Three of the sets are cut out of the same reviews. So a text of which a sentence stands in SST (`official`: key →
    split) has that one's split, test before validation before training; any other text one that its own letters decide,
    the same in every set and for every copy: 7 of 10 train, 1 validation, 2 test.
    """
    whole, *sentences = map(key_of, (text, *re.split(r"(?<=[.!?]) +", text)))
    found = [official[key] for key in (whole, *(s for s in sentences if len(s) >= TELLING)) if key in official]
    if found:
        return max(found, key=SPLITS.index)
    tenth = int.from_bytes(hashlib.sha256(whole.encode()).digest()[:8], "big") % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"


class Sentconv(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Short texts of two to six classes; tokens are separated by spaces, most sets are in small letters.

    TREC, SST-2 and SST-5 have their official splits (TREC no validation). MR, SUBJ, CR and MPQA, which are published
    whole for cross-validation, are split by the letters of each text, so that no text is in two splits of them, nor in
    a training split of one and the test split of another; see `split_of`. The splits have nearly the same shares of
    the classes. SST holds nearly all of MR's texts, and MR most of SUBJ's subjective ones.
    """

    name = "sentconv"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name, description=s.about) for name, s in SETS.items())
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(DIGESTS)} into {FOLDER}."
    RAW = _raw("mr")

    def _info(self) -> tfds.core.DatasetInfo:
        chosen = SETS[self.builder_config.name]
        return make_info(
            self,
            features={"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=chosen.classes)},
            description=f"{chosen.about} {__doc__}",
            homepage="https://github.com/harvardnlp/sent-conv-torch",
            licence="research use",
            citation=chosen.citation,
        )

    def _split_generators(self, dl_manager):
        name = self.builder_config.name
        files = {file: parse(file, content) for file, content in fetch(_raw(name), dl_manager).items()}
        chosen = SETS[name]
        if chosen.files:
            return {split: self._generate_examples(files[file]) for split, file in chosen.files.items()}
        # Where a sentence stands in two splits of SST, the test keeps it.
        official = {key_of(text): split for split in SPLITS for _, text in files[SST[split]]}
        parts = {split: [] for split in SPLITS}
        for label, text in files[chosen.whole]:
            parts[split_of(text, official)].append((label, text))
        return {split: self._generate_examples(examples) for split, examples in parts.items()}

    def _generate_examples(self, examples: list[tuple[int, str]]):
        for i, (label, text) in enumerate(examples):
            yield i, {"text": text, "label": label}
