"""Multi30K: captions of photographs in English, German and French (Elliott et al. 2016, 2017; Barrault et al. 2018)."""

import itertools

import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info

URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
DIGESTS = {
    "de": {
        "train": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
        "val": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
        "test_2016_flickr": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
        "test_2017_flickr": "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081",
        "test_2017_mscoco": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
        "test_2018_flickr": "39fcc8b3331d76fb42d648d019c6898b0d5e58baac87bc2a0bb93f44ec8db207",
    },
    "en": {
        "train": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
        "val": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
        "test_2016_flickr": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
        "test_2017_flickr": "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98",
        "test_2017_mscoco": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
        "test_2018_flickr": "4e585c2dd525911a6ea7730e9d0b516239af3f1b1ffae6a2130223cfb639f25e",
    },
    "fr": {
        "train": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
        "val": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
        "test_2016_flickr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
        "test_2017_flickr": "6f3764e31dac41e9455e612958bcfd4e877c5e15cd66df2c2b2be6d9bd83e5b6",
        "test_2017_mscoco": "39cde3f43f32b0a6bf29ce4917a46329ff32e53070c2fac87506695a740ae0a0",
        "test_2018_flickr": "234b4a887da0da4801a3e2c6f21336231ff7dd46daeb80cfa1b551c8bbb78239",
    },
}
LANGUAGES = {"en": "English", "de": "German", "fr": "French"}
SPLITS = {
    "train": "train",
    "validation": "val",
    "test": "test_2016_flickr",
    "test_2017": "test_2017_flickr",
    "test_2017_mscoco": "test_2017_mscoco",
    "test_2018": "test_2018_flickr",
}
"""Our name of a split → the publisher's."""

FOLDER = "text/multi30k"


def _raw(*languages: str) -> Raw:
    digests = {f"{name}.{x}.gz": f"sha256:{digest}" for x in languages for name, digest in DIGESTS[x].items()}
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?((?:train|val|test_20\d\d_\w+)\.(?:{'|'.join(languages)})\.gz)",
        urls={name: f"{URL}/{name}" for name in digests},
        digests=digests,
    )


class Multi30k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """29000 training, 1014 validation and 1000 test pairs (test 2016), in the direction that the config names.

    Further tests: 2017 (1000), 2017 of MSCOCO's ambiguous verbs (461), 2018 (1071).
    """

    name = "multi30k"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=f"{a}-{b}", description=f"{LANGUAGES[a]} to {LANGUAGES[b]}.")
        for a, b in itertools.permutations(LANGUAGES, 2)
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put SPLIT.LANGUAGE.gz into {FOLDER}."
    RAW = _raw("en", "de")

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text(), "target_text": tfds.features.Text()},
            description=__doc__,
            homepage="https://github.com/multi30k/dataset",
            licence="CC BY-NC-SA 4.0",
            citation="D. Elliott, S. Frank, K. Sima'an, L. Specia. Multi30K: multilingual English-German image "
            "descriptions. VL 2016.",
        )

    def _split_generators(self, dl_manager):
        languages = self.builder_config.name.split("-")
        files = fetch(_raw(*languages), dl_manager)
        return {
            split: self._generate_examples(*(_lines(files[f"{name}.{language}.gz"]) for language in languages), name)
            for split, name in SPLITS.items()
        }

    def _generate_examples(self, sources: list[str], targets: list[str], name: str):
        if len(sources) != len(targets):
            raise UserError(f"{name} has {len(sources)} sources and {len(targets)} targets.")
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            yield i, {"text": source, "target_text": target}


def _lines(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode("utf-8").rstrip("\n").split("\n")]
