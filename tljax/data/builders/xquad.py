"""XQuAD: questions on Wikipedia paragraphs, of SQuAD's development set, in many languages (Artetxe et al. 2020)."""

import numpy as np
import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info
from tljax.data.squad import parse

URL = "https://raw.githubusercontent.com/google-deepmind/xquad/7d30520c717524000f0d9d2f9c10a069acd9d285"
DIGESTS = {
    "de": "990b5d746746ed65ed4702ea5f35f99ffa4e2f1c390c07d003642acd937916f9",
    "en": "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29",
}
FOLDER = "text/xquad"


def _raw(language: str) -> Raw:
    name = f"xquad.{language}.json"
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?(xquad\.{language}\.json)",
        urls={name: f"{URL}/{name}"},
        digests={name: f"sha256:{DIGESTS[language]}"},
    )


class Xquad(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1190 questions on 240 paragraphs, in the order of the articles; one split, `test`, for evaluation.

    A part of it, as in `test[:70%]`, holds whole articles but for the one at its edge.
    """

    name = "xquad"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="en", description="The English originals."),
        tfds.core.BuilderConfig(name="de", description="Translated to German by professionals."),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put xquad.LANGUAGE.json into {FOLDER}."
    RAW = _raw("en")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return make_info(
            self,
            features={
                "id": text,
                "question": text,
                "context": text,
                "answers": tfds.features.Sequence(text),
                "answer_starts": tfds.features.Sequence(np.int32),
            },
            description=__doc__,
            homepage="https://github.com/google-deepmind/xquad",
            licence="CC BY-SA 4.0",
            citation="M. Artetxe, S. Ruder and D. Yogatama. On the cross-lingual transferability of monolingual "
            "representations. ACL 2020.",
        )

    def _split_generators(self, dl_manager):
        language = self.builder_config.name
        return {"test": self._generate_examples(*fetch(_raw(language), dl_manager).items())}

    def _generate_examples(self, file: tuple[str, bytes]):
        name, content = file
        yield from enumerate(parse(content, name))
