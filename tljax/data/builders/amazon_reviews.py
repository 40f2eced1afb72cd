"""Multi-domain sentiment: reviews of books, films, electronics and kitchenware at Amazon (Blitzer et al. 2007)."""

import hashlib
import re

import tensorflow_datasets as tfds

from tljax.data.builders.raw import Raw, fetch, make_info

DOMAINS = ("books", "dvd", "electronics", "kitchen")
CLASSES = ("negative", "positive")
TEXT = re.compile(r"<review_text>(.*?)</review_text>", re.DOTALL)
DIGESTS = {
    "books/negative.review": "4cd64715074b9a15587d69fe31d1f77b3baddec17dfbb0f35c558e3fddd63029",
    "books/positive.review": "a7322ce98f6d37c8ae6531c4efcc0503b691717b39c0e64cfbb321ac9cabaa55",
    "dvd/negative.review": "740259c8bbe6694ee350305c46f2777454803d00000f5d3402db7f282b4b5910",
    "dvd/positive.review": "a25877855d2a1cfcb5b1dc6ac1a9fd29517c089743e59a51ce8c8f17403c0ac9",
    "electronics/negative.review": "e8ab164d5cdea3be914afed4cffc41706d56de29f832c78acb3cccd541de8021",
    "electronics/positive.review": "e5b048ded874b6c97354e3ce683f8f106199a6b586e4d9e7632d2fe021f4263d",
    "kitchen/negative.review": "fc647f24f10e65e14d26f788185125c016451a45940252fa40aedfde51ed6902",
    "kitchen/positive.review": "53044cb91876146aee00c7af3a35a99e310e06fa9d70700c31bd49cf4b5bbc93",
}
URL = "https://raw.githubusercontent.com/bzantium/bert-AAD/cbe2e0cac6564dfbc6234882a73ca78020ac0d22/data"
FOLDER = "text/amazon_multidomain"


def _raw(domain: str) -> Raw:
    names = [f"{domain}/{polarity}.review" for polarity in CLASSES]
    return Raw(
        folder=FOLDER,
        wanted=rf"(?:.*/)?({domain}/(?:negative|positive)\.review)",
        urls={name: f"{URL}/{name}" for name in names},
        digests={name: f"sha256:{DIGESTS[name]}" for name in names},
    )


def split_of(text: str) -> str:
    """The split of a review: "test" where the SHA-256 of its small ASCII letters and digits is a multiple of 5.

    The files have no splits. Some reviews stand in them several times, under different products: by their text all
    come into one split.
    """
    digest = hashlib.sha256(re.sub(r"[^a-z0-9]", "", text.lower()).encode()).hexdigest()
    return "train" if int(digest, 16) % 5 else "test"


class AmazonReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1000 reviews with 1 or 2 stars and 1000 with 4 or 5, of the domain that the config names; see `split_of`."""

    name = "amazon_reviews"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=domain, description=f"Reviews of the domain {domain}.") for domain in DOMAINS
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put DOMAIN/negative.review and DOMAIN/positive.review into {FOLDER}."
    RAW = _raw("books")

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=CLASSES)},
            description=__doc__,
            homepage="https://www.cs.jhu.edu/~mdredze/datasets/sentiment/",
            licence="research use",
            citation="J. Blitzer, M. Dredze and F. Pereira. Biographies, Bollywood, boom-boxes and blenders. ACL 2007.",
        )

    def _split_generators(self, dl_manager):
        domain = self.builder_config.name
        files = fetch(_raw(domain), dl_manager)
        reviews = [
            {"text": text.strip(), "label": polarity}
            for polarity in CLASSES
            for text in TEXT.findall(files[f"{domain}/{polarity}.review"].decode("utf-8"))
        ]
        return {split: self._generate_examples(reviews, split) for split in ("train", "test")}

    def _generate_examples(self, reviews: list[dict[str, str]], split: str):
        for i, review in enumerate(reviews):
            if split_of(review["text"]) == split:
                yield i, review
