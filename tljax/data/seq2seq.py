"""Pairs of a source text and a target text, for models that read the one and write the other."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.data.language import NO_LABEL, text_tokenizer
from tljax.data.text import TextProcessor

TOO_LONG = ("truncate", "error")


@dataclasses.dataclass(frozen=True)
class SourceTarget:
    """Records with `text` and `target_text` → an encoder's inputs, a decoder's inputs, and labels.

    The decoder reads the labels one place later, behind the start token (`labels` y1 y2 end, `decoder_input_ids`
    start y1 y2).

    Attributes:
      processor: of the checkpoint; its `max_length` and `lengths` are those of the sources.
      start: the decoder's first token.
      target_length: tokens kept of a target, the end included; batches have one of the processor's `lengths` below it,
        or it.
      prefix: put before each source ("translate English to German: ").
      too_long: what becomes of targets beyond `target_length`: "truncate" cuts them, and they end as the others do;
        "error" refuses them.
      labelled: False for sources alone, which are to be answered; targets are left out then.
    """

    makes_targets = True
    processor: TextProcessor
    start: int
    target_length: int = 128
    prefix: str = ""
    too_long: str = "truncate"
    labelled: bool = True

    def __post_init__(self):
        length = self.target_length
        raise_faults(
            "Pairs of texts cannot be made:",
            [f"target_length is {length!r}; it must be a whole number from 1."]
            * (type(length) is not int or length < 1)
            + [f"too_long is {self.too_long!r}. {suggest(self.too_long, TOO_LONG)}"] * (self.too_long not in TOO_LONG),
        )

    def __getstate__(self):
        """Without what was derived: a worker derives its own."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The encoder's arrays (S,), and `labels` (T,) with a target.

        Raises:
          UserError: no source text, no target text, or one that is too long where that is an error.
        """
        text, target = record.get("text"), record.get("target_text")
        if not isinstance(text, str):
            raise UserError(f"The record {record.get('id')!r} holds no source text.")
        found = self.processor.example({"id": record.get("id"), "text": self.prefix + text})
        if not self.labelled:
            return found
        if not isinstance(target, str):
            raise UserError(
                f"The record {record.get('id')!r} holds no target text (target_text is {target!r}). Name its column: "
                "columns=dict(text='…', target_text='…')."
            )
        return {**found, "labels": self._labels(record.get("id"), target)}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of source and target."""
        return len(example["input_ids"]) + len(example.get("labels", ()))

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs`: `input_ids`, `attention_mask` (B, S), `decoder_input_ids` (B, T); `targets` (B, T), −100 is none.

        Where nothing is labelled, the encoder's inputs alone.
        """
        own = [{name: x for name, x in each.items() if name != "labels"} for each in examples]
        inputs = self.processor.collate(own)
        if not self.labelled:
            return {"inputs": inputs}
        labels = [each["labels"] for each in examples]
        length = self._targets.length_for(max(map(len, labels)))
        targets = np.stack([np.pad(row, (0, length - len(row)), constant_values=NO_LABEL) for row in labels])
        shifted = np.where(targets[:, :-1] < 0, text_tokenizer(self.processor).pad_token_id or 0, targets[:, :-1])
        first = np.full((len(labels), 1), self.start)
        return {
            "inputs": {**inputs, "decoder_input_ids": np.concatenate([first, shifted], axis=1).astype(np.int32)},
            "targets": targets.astype(np.int32),
        }

    def fixed_shape(self) -> "SourceTarget":
        """With one length of the sources and one of the targets for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        own = {name: getattr(self, name) for name in ("start", "target_length", "prefix", "too_long")}
        return {**self.processor.facts, **own}

    @cached_property
    def _targets(self) -> TextProcessor:
        """The tokenizer as targets are cut; a decoder's positions are not the encoder's."""
        kept = {"max_length": self.target_length, "positions": None}
        new = dataclasses.replace(self.processor, **kept)
        vars(new).update({k: x for k, x in vars(self.processor).items() if k == "_tokenizer"})
        return new

    def _labels(self, name: Any, target: str) -> np.ndarray:
        """Token ids (T,) with the end at the end."""
        tokenizer = text_tokenizer(self.processor)
        last, limit = tokenizer.eos_token_id, self.target_length
        if self.too_long == "error":
            ids = tokenizer(target, verbose=False)["input_ids"]
            count = len(ids) + (last is not None and ids[-1:] != [last])
            if count > limit:
                raise UserError(
                    f"The target of the record {name!r} has {count} tokens, and target_length is {limit}. Raise it, or "
                    "let longer targets be cut with too_long='truncate'."
                )
        ids = self._targets.example({"id": name, "text": target})["input_ids"]
        if last is not None and (not len(ids) or ids[-1] != last):
            ids = np.append(ids[: limit - 1], last)
        return ids.astype(np.int32)


def first_token(config: Any, tokenizer: Any) -> int:
    """The token that a decoder starts with: the one that the checkpoint names, else its padding, as for a T5.

    Raises:
      UserError: neither is known.
    """
    for token in (getattr(config, "decoder_start_token_id", None), tokenizer.pad_token_id):
        if token is not None:
            return token
    raise UserError("The checkpoint names no decoder_start_token_id, and its tokenizer has no padding token.")
