"""Text → token ids, by the checkpoint's own tokenizer."""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.data.augment import TextAugment, changed_text, read_augment
from tljax.data.options import fixed, replaced

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""A folder with one of these holds a tokenizer."""
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
PAIRS = ("joint", "separate")


@dataclasses.dataclass(frozen=True)
class TextProcessor:
    """Turns `text` (and `text_b`) into `input_ids`, `attention_mask` and, if the tokenizer has them, `token_type_ids`.

    Batches are padded to the smallest of a few lengths, so that a compiled function sees few shapes.

    Attributes:
      folder: holds the tokenizer's files.
      max_length: tokens kept of an example, special ones included; of a pair, the longer text is cut first.
      pair: "joint" makes one sequence of a pair, (B, T); "separate" makes two, (B, 2, T).
      lengths: the lengths T that a batch may have, below `max_length`, which is always one of them.
      positions: tokens that the model can take, or None.
      vocabulary: rows of the model's word embedding, or None; a tokenizer with more tokens is refused.
      knows_all: refuse texts with something that the tokenizer does not know.
      augment: `TextAugment` (or its options), applied in training only, to each text of a pair by itself.
    """

    folder: str = fixed()
    max_length: int = 512
    pair: str = "joint"
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    positions: int | None = fixed(default=None)
    vocabulary: int | None = fixed(default=None)
    knows_all: bool = fixed(default=False)
    augment: Any = None

    def __post_init__(self):
        faults = []
        if self.pair not in PAIRS:
            faults.append(f"pair is {self.pair!r}. {suggest(self.pair, PAIRS)}")
        if not isinstance(self.max_length, int) or self.max_length < 1:
            faults.append(f"max_length is {self.max_length!r}, and must be a whole number above 0.")
        elif self.positions is not None and self.max_length > self.positions:
            faults.append(f"max_length is {self.max_length}, and the model has {self.positions} positions.")
        if not all(isinstance(length, int) and length > 0 for length in self.lengths):
            faults.append(f"lengths is {self.lengths!r}, and must be whole numbers above 0.")
        augment, wrong = read_augment(TextAugment, self.augment)
        object.__setattr__(self, "augment", augment)
        faults += wrong
        raise_faults("The text processor cannot be made:", faults)

    def __getstate__(self):
        """Without the loaded tokenizer: a worker loads its own."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def replace(self, **options: Any) -> "TextProcessor":
        """With other `max_length`, `pair`, `lengths` or `augment`; raises `UserError` for anything else."""
        new = replaced(self, options, what="text")
        if "_tokenizer" in vars(self):  # the same files: load them once
            vars(new)["_tokenizer"] = self._tokenizer
        return new

    def fixed_shape(self) -> "TextProcessor":
        """With one length for all batches, as several processes need that fill one global batch."""
        return self.replace(lengths=())

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Arrays of (T,), or of (2, T) for separate pairs; T is the example's own length. `rng` switches `augment` on.

        Raises:
          UserError: the record holds no text, or no second text for separate pairs.
        """
        text, text_b = record.get("text"), record.get("text_b")
        if not isinstance(text, str) or not (text_b is None or isinstance(text_b, str)):
            raise UserError(f"The record {record.get('id')!r} holds no text, and the checkpoint reads text.")
        if self.knows_all:
            self._check_known(record, text + (text_b or ""))
        if rng is not None and self.augment is not None:
            text = changed_text(text, self.augment, rng)
            text_b = None if text_b is None else changed_text(text_b, self.augment, rng)
        if self.pair == "joint":
            return self._arrays(*self._encode(text, text_b))
        if text_b is None:
            raise UserError(f"The record {record.get('id')!r} holds one text, and pair='separate' needs two.")
        parts = [self._arrays(*self._encode(each, None)) for each in (text, text_b)]
        longest = max(part["input_ids"].shape[0] for part in parts)
        return {name: np.stack([self.pad(part[name], name, longest) for part in parts]) for name in parts[0]}

    def _check_known(self, record: Mapping[str, Any], text: str) -> None:
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        unknown = [text[start:stop] for token, (start, stop) in places if token == self._tokenizer.unk_token_id]
        if unknown:
            raise UserError(
                f"The record {record.get('id')!r} holds what the tokenizer does not know: "
                f"{', '.join(map(repr, sorted(set(unknown))))}."
            )

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example: batches of similar size waste less padding."""
        return example["input_ids"].shape[-1]

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """int32 arrays (B, T), or (B, 2, T) for separate pairs, padded to one of the lengths."""
        length = self.length_for(max(map(self.size_of, examples)))
        return {name: np.stack([self.pad(x[name], name, length) for x in examples]) for name in examples[0]}

    def length_for(self, tokens: int) -> int:
        """The smallest of the lengths that holds so many tokens."""
        return min(n for n in (*self.lengths, self.max_length) if tokens <= n <= self.max_length)

    def check_vocabulary(self, size: int) -> None:
        """Raises `UserError` where the tokenizer knows more tokens than a word embedding of `size` rows."""
        count = len(self._tokenizer)
        if count > size:
            raise UserError(
                f"The tokenizer in {self.folder} has {count} tokens, and the model's word embedding {size} rows: "
                "it belongs to another checkpoint."
            )

    def save(self, folder: str | os.PathLike) -> None:
        """Copies the tokenizer's files into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (*FILES, *COMPANIONS):
            source = Path(self.folder, name)
            if source.is_file() and source.resolve() != Path(folder, name).resolve():
                shutil.copyfile(source, Path(folder, name))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {"pair": self.pair, "max_length": self.max_length, "folder": Path(self.folder).name}

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer of the checkpoint."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each tokenizer class fails in its own way
            raise UserError(f"The tokenizer in {self.folder} cannot be loaded: {error}") from error

    @cached_property
    def _backend(self) -> Any:
        """A copy of the tokenizer's Rust part, which encodes three times faster than its wrapper; None without one."""
        if self.vocabulary is not None:
            self.check_vocabulary(self.vocabulary)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.enable_truncation(self.max_length, strategy="longest_first")
        return backend

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(n for n in self._tokenizer.model_input_names if n != "attention_mask")

    def _encode(self, text: str, text_b: str | None) -> tuple[Sequence[int], Sequence[int]]:
        """(token ids, segment ids)."""
        if self._backend is not None:
            encoding = self._backend.encode(text, text_b)
            return encoding.ids, encoding.type_ids
        encoding = self._tokenizer(text, text_b, truncation="longest_first", max_length=self.max_length)
        ids = encoding["input_ids"]
        return ids, encoding.get("token_type_ids", [0] * len(ids))

    def _arrays(self, ids: Sequence[int], types: Sequence[int]) -> dict[str, np.ndarray]:
        arrays = {"input_ids": np.array(ids, np.int32), "attention_mask": np.ones(len(ids), np.int32)}
        if "token_type_ids" in self._names:
            arrays["token_type_ids"] = np.array(types, np.int32)
        return arrays

    def pad(self, array: np.ndarray, name: str, length: int, value: int = 0) -> np.ndarray:
        """`array` (…, t) as (…, length), on the tokenizer's side, with its padding token or `value` for other names."""
        missing = length - array.shape[-1]
        before = missing if self._tokenizer.padding_side == "left" else 0
        pads = [(0, 0)] * (array.ndim - 1) + [(before, missing - before)]
        value = (self._tokenizer.pad_token_id or 0) if name == "input_ids" else value
        return np.pad(array, pads, constant_values=value)
