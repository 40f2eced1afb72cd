"""Tiny Shakespeare: a million characters of the plays, as one text a split (Karpathy 2015)."""

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

NAME = "input.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare"
RAW = Raw(
    folder="text/tinyshakespeare",
    wanted=r"(?:.*/)?(input\.txt)",
    urls={NAME: f"{URL}/{NAME}"},
    digests={NAME: "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
)
SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
"""Of the characters, in their order: as TFDS's own builder cuts it."""


class Tinyshakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1003854 training, 55770 validation and 55770 test characters."""

    name = "tinyshakespeare"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {NAME} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text()},
            description=__doc__,
            homepage="https://github.com/karpathy/char-rnn",
            licence="public domain",
            citation="A. Karpathy. The unreasonable effectiveness of recurrent neural networks. 2015.",
        )

    def _split_generators(self, dl_manager):
        text = fetch(RAW, dl_manager)[NAME].decode("utf-8")
        return {split: self._generate_examples(text, *shares) for split, shares in SHARES.items()}

    def _generate_examples(self, text: str, start: float, stop: float):
        yield 0, {"text": text[int(start * len(text)) : int(stop * len(text))]}
