"""Words with a tag each → tokens of which the first of each word carries the word's tag."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.data.language import NO_LABEL, text_tokenizer
from tljax.data.text import TextProcessor

OWN = ("words", "labels")
"""Arrays of an example that are not the model's."""


@dataclasses.dataclass(frozen=True)
class Tagging:
    """`tokens` (a list of words; or `text`, split at white space) and `tags` → model inputs and targets (B, T).

    A word's first token has its tag; its other tokens, special tokens and padding have −100 (Devlin et al. 2019). Words
    beyond the processor's `max_length` are cut off.
    """

    makes_targets = True
    processor: TextProcessor

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The model's arrays (T,); `words`, at the first token of a word its number from 1 on, else 0; and `labels`.

        Raises:
          UserError: no words, or not one tag a word.
        """
        words, tags = words_of(record), record.get("tags")
        if tags is not None and len(tags) != len(words):
            raise UserError(f"The record {record.get('id')!r} has {len(words)} tokens and {len(tags)} tags.")
        encoding = self._encode(words)
        names = text_tokenizer(self.processor).model_input_names
        found = {name: np.asarray(encoding[name], np.int32) for name in names if name in encoding}
        found.setdefault("attention_mask", np.ones_like(found["input_ids"]))
        places, kept = _first_tokens(encoding)
        found["words"] = np.zeros(len(found["input_ids"]), np.int32)
        found["words"][places] = kept + 1
        if tags is not None:
            found["labels"] = np.full(len(found["input_ids"]), NO_LABEL, np.int32)
            found["labels"][places] = np.asarray(tags, np.int32)[kept]
        return found

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` and `words` (B, T), and `targets` (B, T) where there are tags."""
        inputs = self.processor.collate([{n: x for n, x in e.items() if n not in OWN} for e in examples])
        batch = {"inputs": inputs, "words": self._padded(examples, "words", 0, inputs)}
        if "labels" in examples[0]:
            batch["targets"] = self._padded(examples, "labels", NO_LABEL, inputs)
        return batch

    def fixed_shape(self) -> "Tagging":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return self.processor.facts

    def _encode(self, words: Sequence[str]) -> Any:
        tokenizer = text_tokenizer(self.processor)
        if not tokenizer.is_fast:
            raise UserError("Token classification needs a fast tokenizer (tokenizer.json), which knows a token's word.")
        return tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=self.processor.max_length)

    def _padded(self, examples: Sequence[Mapping[str, np.ndarray]], name: str, value: int, inputs: Any) -> np.ndarray:
        length = inputs["input_ids"].shape[1]
        return np.stack([self.processor.pad(example[name], name, length, value) for example in examples])


def _first_tokens(encoding: Any) -> tuple[np.ndarray, np.ndarray]:
    """(places of the first tokens of words, the words' numbers)."""
    words = np.array([-1 if word is None else word for word in encoding.word_ids()])
    first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
    return np.flatnonzero(first), words[first]


def words_of(record: Mapping[str, Any]) -> list[str]:
    """The words of a record; raises `UserError` where it has none."""
    words = record.get("tokens")
    if words is None and isinstance(record.get("text"), str):
        words = record["text"].split()
    if not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"The record {record.get('id')!r} has no words to tag: it needs `tokens`, a list of strings.")
    return list(words)
