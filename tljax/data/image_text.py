"""Images and texts together, for models with a tower for each; and pairs of which each is the other's match."""

import dataclasses
import importlib.util
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call, suggest
from tljax.data.images import ImageProcessor
from tljax.data.options import replaced
from tljax.data.text import FILES, TextProcessor

READS = ("all", "image", "text")


@dataclasses.dataclass(frozen=True)
class ImageTextProcessor:
    """Turns `image` into `pixel_values` and `text` into `input_ids` and `attention_mask`, whichever a record holds.

    Its options are its own and those of the two processors that it holds.

    Attributes:
      images, texts: what reads the one and the other.
      reads: "all" that the records hold, or "image" or "text" alone.
    """

    images: ImageProcessor
    texts: TextProcessor
    reads: str = "all"

    def __post_init__(self):
        if self.reads not in READS:
            raise UserError(f"The image-text processor's reads is {self.reads!r}. {suggest(self.reads, READS)}")

    @property
    def augment(self) -> Any:
        """Random changes of training images."""
        return self.images.augment

    @property
    def vocabulary(self) -> int | None:
        """Rows of the model's word embedding."""
        return self.texts.vocabulary

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the checkpoint."""
        return self.texts.tokenizer

    def check_vocabulary(self, size: int) -> None:
        """As `TextProcessor.check_vocabulary`."""
        self.texts.check_vocabulary(size)

    def replace(self, **options: Any) -> "ImageTextProcessor":
        """With other options of its own, of the images and of the texts; raises `UserError` for unknown ones."""
        mine: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {"images": {}, "texts": {}}
        accepted = {part: _options(getattr(self, part)) for part in parts}
        faults = []
        for name, value in options.items():
            owner = next((part for part, names in accepted.items() if name in names), None)
            if owner is not None:
                parts[owner][name] = value
            elif name == "reads":
                mine[name] = value
            else:
                known = ("reads", *accepted["images"], *accepted["texts"])
                faults.append(f"{name} is not one of them. {suggest(name, known)}")
        raise_faults("The options of the image-text processor cannot be used:", faults)
        changed = {part: getattr(self, part).replace(**given) for part, given in parts.items() if given}
        return dataclasses.replace(replaced(self, mine, what="image-text"), **changed)

    def fixed_shape(self) -> "ImageTextProcessor":
        """With one length for the texts of all batches."""
        return dataclasses.replace(self, texts=self.texts.fixed_shape())

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`pixel_values` (H, W, C), `input_ids` (T,) and what else the tokenizer gives.

        Raises:
          UserError: the record holds neither, or not what `reads` asks for, or something that cannot be read.
        """
        wanted = ("image", "text") if self.reads == "all" else (self.reads,)
        held = [name for name in wanted if record.get(name) is not None]
        if not held:
            raise UserError(f"The record {record.get('id')!r} holds no {' and no '.join(wanted)}.")
        images = self.images.example(record, rng) if "image" in held else {}
        texts = self.texts.example(record, rng) if "text" in held else {}
        return {**images, **{name: x for name, x in texts.items() if name != "token_type_ids"}}

    def opened(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with its image decoded, where it is read, for several calls of `example`."""
        read = self.reads != "text" and record.get("image") is not None
        return self.images.opened(record) if read else record

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example: batches of similar size waste less padding."""
        return example["input_ids"].shape[-1] if "input_ids" in example else 0

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """`pixel_values` (B, H, W, C), and int32 arrays (B, T).

        Raises:
          UserError: some records of the batch hold an image or a text, and others do not.
        """
        kinds = {frozenset(example) for example in examples}
        if len(kinds) > 1:
            uneven = sorted(frozenset.union(*kinds) - frozenset.intersection(*kinds))
            raise UserError(f"Some records of a batch give {', '.join(uneven)}, and others do not. Set `reads`.")
        batch = {}
        if "pixel_values" in examples[0]:
            batch = self.images.collate([{"pixel_values": x["pixel_values"]} for x in examples])
        if "input_ids" in examples[0]:
            texts = [{name: a for name, a in x.items() if name != "pixel_values"} for x in examples]
            batch = {**batch, **self.texts.collate(texts)}
        return batch

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files of both processors into `folder`."""
        self.images.save(folder)
        self.texts.save(folder)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {"reads": self.reads, "images": self.images.facts, "texts": self.texts.facts}


def _options(processor: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(processor) if f.metadata.get("option", True)]


def image_text(
    *, tokenizer: str, text: Mapping[str, Any] | None = None, image: Mapping[str, Any] | None = None, reads: str = "all"
) -> ImageTextProcessor:
    """The processor of a model that starts without a checkpoint.

    Args:
      tokenizer: a folder with a tokenizer's files, or `package:NAME/PATH`, one inside an installed package.
      text: options of `TextProcessor`.
      image: options of `ImageProcessor`.
      reads: see `ImageTextProcessor`.

    Raises:
      UserError: there is no such folder; unknown options.
    """
    folder = Path(tokenizer)
    if tokenizer.startswith("package:"):
        name, _, inside = tokenizer.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        folder = Path((spec.submodule_search_locations or [""])[0] if spec else "", inside)
    if not any((folder / file).is_file() for file in FILES):
        raise UserError(f"There is no tokenizer in {tokenizer}: none of {', '.join(FILES)}.")
    images = call(ImageProcessor, (), image, where="config.model.processor.image")
    return ImageTextProcessor(images, TextProcessor(str(folder)).replace(**(text or {})), reads)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A processor of pairs; its targets `group` and `match` (B,) are numbers that records with the same match share.

    Attributes:
      processor: reads both parts of a record.
      group: who has the same number `group`: "pair": nobody, only the own part matches, and the number is −1; "text":
        records with equal texts, which match each other's parts too; "label": those with equal labels.
      sides: the entries of a record that must be there.
      captions: for each class, texts for the images of that class that come without one. Training draws one at random;
        in evaluation the record's id chooses.
      match: as `group`, for the number `match`; "" is the same.
    """

    makes_targets = True
    processor: Any
    group: str
    sides: tuple[str, str]
    captions: tuple[tuple[str, ...], ...] | None = None
    match: str = ""

    @property
    def random(self) -> bool:
        """Whether training asks for random numbers."""
        return (
            self.captions is not None
            or getattr(self.processor, "augment", None) is not None
            or getattr(self.processor, "random", False)
        )

    def replace(self, **options: Any) -> "Pairs":
        """With other options of its processor."""
        return dataclasses.replace(self, processor=self.processor.replace(**options))

    def fixed_shape(self) -> "Pairs":
        """With one shape for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """What the processor makes of the record, its `group` and its `match`.

        Raises:
          UserError: the record holds one part alone, or no label where labels tell the groups.
        """
        if self.captions is not None and record.get("text") is None and record.get("label") is not None:
            texts = self.captions[int(record["label"])]
            number = zlib.crc32(str(record["id"]).encode()) if rng is None else rng.integers(len(texts))
            record = {**record, "text": texts[int(number) % len(texts)]}
        wanted = (*self.sides, "label") if "label" in (self.group, self.match) else self.sides
        missing = [name for name in wanted if record.get(name) is None]
        if missing:
            raise UserError(
                f"The record {record.get('id')!r} holds no {' and no '.join(missing)}, and pairs need "
                f"{', '.join(wanted)}."
            )
        numbers = {"group": self._number(self.group, record), "match": self._number(self.match or self.group, record)}
        return {"inputs": self.processor.example(record, rng), **numbers}

    def _number(self, kind: str, record: Mapping[str, Any]) -> int:
        if kind == "text":
            return zlib.crc32(record[self.sides[1]].encode()) & 0x7FFFFFFF
        return int(record["label"]) if kind == "label" else -1

    def size_of(self, example: Mapping[str, Any]) -> int:
        """Tokens of an example, where it has any."""
        size_of = getattr(self.processor, "size_of", None)
        return size_of(example["inputs"]) if size_of is not None else 0

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`inputs`, and `targets`: `group` and `match`, int32 (B,)."""
        inputs = self.processor.collate([x["inputs"] for x in examples])
        targets = {name: np.array([x[name] for x in examples], np.int32) for name in ("group", "match")}
        return {"inputs": inputs, "targets": targets}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files of its processor into `folder`."""
        self.processor.save(folder)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {
            "group": self.group,
            "match": self.match or self.group,
            "captions": self.captions,
            **self.processor.facts,
        }
