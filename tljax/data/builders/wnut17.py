"""WNUT 2017: named entities that are new or rare, in tweets, comments and posts (Derczynski et al. 2017)."""

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info
from tljax.data.conll import parse

KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
CLASSES = ("O", *(f"{side}-{kind}" for kind in KINDS for side in "BI"))
URL = "https://raw.githubusercontent.com/leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603"
FILES = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}
RAW = Raw(
    folder="text/wnut17",
    wanted=r"(?:.*/)?(wnut17train\.conll|emerging\.dev\.conll|emerging\.test\.annotated)",
    urls={name: f"{URL}/{name}" for name in FILES.values()},
    digests={
        "wnut17train.conll": "sha256:731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
        "emerging.dev.conll": "sha256:e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
        "emerging.test.annotated": "sha256:2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
    },
)


class Wnut17(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """3394 training, 1009 validation and 1287 test sentences, with the official tags."""

    name = "wnut17"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(FILES.values())} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "tokens": tfds.features.Sequence(tfds.features.Text()),
                "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
            },
            description=__doc__,
            homepage="https://noisy-text.github.io/2017/emerging-rare-entities.html",
            licence="CC BY 4.0",
            citation="L. Derczynski et al. Results of the WNUT2017 shared task. W-NUT 2017.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        return {split: self._generate_examples(files[name], name) for split, name in FILES.items()}

    def _generate_examples(self, content: bytes, name: str):
        for i, sentence in enumerate(parse(content.decode("utf-8"), name, classes=CLASSES)):
            yield i, {"tokens": sentence.tokens, "tags": sentence.tags}
