"""Questions on long texts → windows of tokens, each with the place of the answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source
from tljax.data.language import text_tokenizer
from tljax.data.records import read_many
from tljax.data.squad import misplaced
from tljax.data.text import TextProcessor

READ_AT_ONCE = 256
TOKENS = ("input_ids", "token_type_ids", "attention_mask")


def windows(source: Source, processor: TextProcessor, stride: int) -> Source:
    """Each question with as much of its context as `processor.max_length` allows, once for each part of the context.

    Neighbouring parts share `stride` tokens, so that an answer at an edge stands whole in one of them (Devlin et al.
    2019). Each record is a dict: the tokenizer's arrays (T,); `offsets` (T, 2), the characters of the context that a
    token covers, −1 for tokens of the question and special ones; `start` and `stop`, the first and last token of the
    first answer, both 0 where this part does not hold it; and `id`, `question`, `context`, `answers`.

    Raises:
      UserError: records without question and context, answers that do not stand where they should, a stride that
        leaves no room.
    """
    tokenizer = text_tokenizer(processor)
    if not tokenizer.is_fast:
        raise UserError("Question answering needs a fast tokenizer (tokenizer.json), which knows a token's characters.")
    found: list[dict[str, Any]] = []
    for first in range(0, len(source.records), READ_AT_ONCE):
        places = range(first, min(first + READ_AT_ONCE, len(source.records)))
        records = read_many(source.records, places)
        _check(records, source.name)
        found += _windows(records, tokenizer, processor.max_length, stride)
    return Source(found, None, f"{source.name}[windows of {processor.max_length} tokens, stride {stride}]")


def _check(records: Sequence[Mapping[str, Any]], name: str) -> None:
    faults = [
        f"record {record.get('id')!r} has no {key}."
        for record in records
        for key in ("question", "context")
        if not isinstance(record.get(key), str)
    ]
    raise_faults(f"{name} cannot be asked:", faults)
    answered = [record for record in records if record.get("answers")]
    raise_faults(f"{name} cannot be asked:", [fault for record in answered for fault in misplaced(record)])


def _windows(records: Sequence[Mapping[str, Any]], tokenizer: Any, length: int, stride: int) -> list[dict[str, Any]]:
    questions = [record["question"].strip() for record in records]
    longest = max(len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"])
    room = length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= stride:
        raise UserError(
            f"A question has {longest} tokens, so that of max_length {length} there are {room} left for the context; "
            f"config.task.stride is {stride} and must be smaller."
        )
    encoded = tokenizer(
        questions,
        [record["context"] for record in records],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    made = []
    for i, number in enumerate(encoded["overflow_to_sample_mapping"]):
        record = records[number]
        offsets = np.asarray(encoded["offset_mapping"][i], np.int32)
        offsets[np.array([side != 1 for side in encoded.sequence_ids(i)])] = -1
        arrays = {name: np.asarray(encoded[name][i], np.int32) for name in TOKENS if name in encoded}
        start, stop = _place(record, offsets)
        kept = {name: record[name] for name in ("id", "question", "context")}
        kept["answers"] = list(record.get("answers") or ())
        made.append({**kept, **arrays, "offsets": offsets, "start": start, "stop": stop})
    return made


def _place(record: Mapping[str, Any], offsets: np.ndarray) -> tuple[int, int]:
    """(first, last) token of the first answer, or (0, 0) where it is not wholly here."""
    if not record.get("answers"):
        return 0, 0
    begin = record["answer_starts"][0]
    end = begin + len(record["answers"][0])
    inside = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > begin) & (offsets[:, 0] < end))
    if not len(inside) or offsets[inside[0], 0] > begin or offsets[inside[-1], 1] < end:
        return 0, 0
    return int(inside[0]), int(inside[-1])


@dataclasses.dataclass(frozen=True)
class Spans:
    """Windows → model inputs (B, T); `context` (B, T), 1 where an answer may stand; targets `start` and `stop` (B,)."""

    makes_targets = True
    processor: TextProcessor
    labelled: bool = True

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The arrays of a window."""
        arrays = {name: record[name] for name in TOKENS if name in record}
        place = np.array([record["start"], record["stop"]], np.int32)
        return {**arrays, "context": (record["offsets"][:, 0] >= 0).astype(np.int32), "place": place}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of a window."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs`, `context`, and `targets` where answers are known."""
        own = ("context", "place")
        inputs = self.processor.collate([{n: x for n, x in e.items() if n not in own} for e in examples])
        length = inputs["input_ids"].shape[1]
        batch = {"inputs": inputs}
        batch["context"] = np.stack([self.processor.pad(e["context"], "context", length) for e in examples])
        if self.labelled:
            places = np.stack([e["place"] for e in examples])
            if text_tokenizer(self.processor).padding_side == "left":
                places = places + np.array([[length - len(e["context"])] for e in examples])
            batch["targets"] = {"start": places[:, 0], "stop": places[:, 1]}
        return batch

    def fixed_shape(self) -> "Spans":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return self.processor.facts
