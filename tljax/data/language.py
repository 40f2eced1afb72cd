"""Texts for language models: packed into chunks of equal length, masked, or left as prompts to be continued."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.data.records import read_many
from tljax.data.text import TextProcessor

NO_LABEL = -100
READ_AT_ONCE = 256
KEEP_MASK, RANDOM_WORD = 0.8, 0.5
"""Of the chosen tokens 80 % become the mask; of the others half become a random token (Devlin et al. 2019)."""


class Chunks:
    """The tokens of all documents one after another, in chunks of `length`.

    Each is a dict of int32 arrays (T,): `input_ids`; `segment_ids`, the number of the document within the chunk from 1
    on, 0 for padding; `position_ids`, which start anew with each document.
    """

    def __init__(self, tokens: np.ndarray, documents: np.ndarray, length: int, padding: int):
        self._tokens, self._documents, self._length, self._padding = tokens, documents, length, padding

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = slice(index * self._length, (index + 1) * self._length)
        ids, documents = self._tokens[part], self._documents[part]
        segments = documents - documents[0] + 1
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        positions = np.arange(len(ids)) - starts[np.searchsorted(starts, np.arange(len(ids)), side="right") - 1]
        missing = (0, self._length - len(ids))
        return {
            "id": int(index),
            "input_ids": np.pad(ids, missing, constant_values=self._padding).astype(np.int32),
            "segment_ids": np.pad(segments, missing).astype(np.int32),
            "position_ids": np.pad(positions, missing).astype(np.int32),
        }


def pack(source: Source, processor: TextProcessor, length: int) -> Source:
    """`source` as chunks of `length` tokens. All of its texts are tokenized here, once.

    A document starts with the tokenizer's first token (`bos`) and ends with its last (`eos`), where there are such;
    where the two are one token, it stands at the end only.

    Raises:
      UserError: records without text; a tokenizer that belongs to another vocabulary.
    """
    tokenizer = text_tokenizer(processor)
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = None if first == last else first
    tokens, documents = [], []
    for start in range(0, len(source.records), READ_AT_ONCE):
        places = range(start, min(start + READ_AT_ONCE, len(source.records)))
        for number, record in zip(places, read_many(source.records, places), strict=True):
            if not isinstance(record.get("text"), str):
                raise UserError(f"{source.name}, record {record.get('id')!r} holds no text to model.")
            ids = tokenizer(record["text"], verbose=False)["input_ids"]
            ids = ids if first is None or ids[:1] == [first] else [first, *ids]
            ids = ids if last is None or ids[-1:] == [last] else [*ids, last]
            tokens.append(np.asarray(ids, np.int32))
            documents.append(np.full(len(ids), number, np.int32))
    chunks = Chunks(np.concatenate(tokens), np.concatenate(documents), length, tokenizer.pad_token_id or 0)
    if not len(chunks):
        raise UserError(f"{source.name} holds no tokens.")
    return Source(chunks, None, f"{source.name}[packed to {length} tokens]")


def text_tokenizer(processor: Any) -> Any:
    """The tokenizer of a text processor, checked against the model's vocabulary."""
    if not hasattr(processor, "tokenizer"):
        raise UserError("A language model needs texts, and this checkpoint carries no tokenizer.")
    if getattr(processor, "vocabulary", None) is not None:
        processor.check_vocabulary(processor.vocabulary)
    return processor.tokenizer


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Chunks of `pack` → inputs, and as targets (B, T) the token that follows within the document, else −100."""

    makes_targets = True
    processor: TextProcessor
    length: int

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Arrays (T,): those of the chunk, and `labels`."""
        ids, segments = record["input_ids"], record["segment_ids"]
        labels = np.full(len(ids), NO_LABEL, np.int32)
        same = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        labels[:-1][same] = ids[1:][same]
        return {**{name: x for name, x in record.items() if name != "id"}, "labels": labels}

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` with an attention mask, and `targets`, (B, T)."""
        columns = {name: np.stack([x[name] for x in examples]) for name in examples[0]}
        labels = columns.pop("labels")
        columns["attention_mask"] = (columns["segment_ids"] > 0).astype(np.int32)
        return {"inputs": columns, "targets": labels}

    def fixed_shape(self) -> "NextToken":
        """Itself: all chunks have one length."""
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {**self.processor.facts, "length": self.length}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Texts to be continued: no last token, padded on the left, so that all end at the same place."""

    makes_targets = True
    processor: TextProcessor

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`input_ids` (T,); an empty text is the first token alone."""
        if not isinstance(record.get("text"), str):
            raise UserError(f"The record {record.get('id')!r} holds no text to continue.")
        tokenizer = text_tokenizer(self.processor)
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = tokenizer(record["text"], verbose=False)["input_ids"]
        ids = ids[:-1] if last != first and ids[-1:] == [last] else ids
        if first is not None and ids[:1] != [first] and (first != last or not ids):
            ids = [first, *ids]
        if not ids:
            raise UserError(f"The record {record.get('id')!r} is empty, and the tokenizer has no first token.")
        return {"input_ids": np.asarray(ids[-self.processor.max_length :], np.int32)}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs`: `input_ids` and `attention_mask`, (B, T), T one of the processor's lengths."""
        length = self.processor.length_for(max(map(self.size_of, examples)))
        padding = text_tokenizer(self.processor).pad_token_id or 0
        missing = [(length - len(x["input_ids"]), 0) for x in examples]
        ids = [np.pad(x["input_ids"], m, constant_values=padding) for x, m in zip(examples, missing, strict=True)]
        marks = [np.pad(np.ones_like(x["input_ids"]), m) for x, m in zip(examples, missing, strict=True)]
        return {"inputs": {"input_ids": np.stack(ids), "attention_mask": np.stack(marks)}}

    def fixed_shape(self) -> "Prompts":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return self.processor.facts


@dataclasses.dataclass(frozen=True)
class Masking:
    """Texts with some tokens masked, which are the targets: `positions` and `labels`, both (B, K).

    In training another choice each time; in evaluation one that the record's `id` decides.

    Attributes:
      processor: of the checkpoint.
      rate: share of the tokens, special ones apart, that are chosen; at least one is.
    """

    makes_targets = True
    random = True
    processor: TextProcessor
    rate: float = 0.15

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The processor's arrays (T,) with masked `input_ids`, and `positions` and `labels` (k,)."""
        if rng is None:
            rng = np.random.default_rng(zlib.crc32(str(record.get("id")).encode()))
        tokenizer = text_tokenizer(self.processor)
        found = dict(self.processor.example(record))
        ids = found["input_ids"].copy()
        places = np.flatnonzero(~np.isin(ids, tokenizer.all_special_ids))
        count = min(len(places), max(1, round(self.rate * len(places))))
        chosen = np.sort(rng.permutation(places)[:count])
        labels = ids[chosen]
        draw = rng.random((2, count))
        ids[chosen] = np.where(
            draw[0] < KEEP_MASK,
            mask_token(tokenizer),
            np.where(draw[1] < RANDOM_WORD, rng.integers(0, len(tokenizer), count), labels),
        )
        return {**found, "input_ids": ids, "positions": chosen.astype(np.int32), "labels": labels}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` (B, T) and `targets` {`positions`, `labels`} (B, K), K a function of T; −100 is none."""
        own = [{name: x for name, x in e.items() if name not in ("positions", "labels")} for e in examples]
        inputs = self.processor.collate(own)
        width = max(1, round(self.rate * inputs["input_ids"].shape[1]))
        shape = (len(examples), width)
        positions, labels = np.zeros(shape, np.int32), np.full(shape, NO_LABEL, np.int32)
        for row, example in enumerate(examples):
            count = len(example["labels"])
            positions[row, :count], labels[row, :count] = example["positions"], example["labels"]
        return {"inputs": inputs, "targets": {"positions": positions, "labels": labels}}

    def fixed_shape(self) -> "Masking":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {**self.processor.facts, "rate": self.rate}


@dataclasses.dataclass(frozen=True)
class Unmasked:
    """Texts that hold masks already."""

    makes_targets = True
    processor: TextProcessor

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The processor's arrays; raises `UserError` for a text without a mask."""
        found = self.processor.example(record)
        mask = self.processor.tokenizer.mask_token
        if mask not in record["text"]:
            raise UserError(f"The record {record.get('id')!r} holds no {mask}: write it where a token is to be found.")
        return found

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return self.processor.size_of(example)

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` alone."""
        return {"inputs": self.processor.collate(examples)}

    def fixed_shape(self) -> "Unmasked":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return self.processor.facts


def mask_token(tokenizer: Any) -> int:
    """The id of the mask; raises `UserError` where the tokenizer has none."""
    if tokenizer.mask_token_id is None:
        raise UserError("Masked language modelling needs a mask token, and this checkpoint's tokenizer has none.")
    return tokenizer.mask_token_id
