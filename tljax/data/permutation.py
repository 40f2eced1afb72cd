"""Texts with an order of factorisation for each, whose last tokens are the targets (Yang et al. 2019)."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError
from tljax.data.language import NO_LABEL, mask_token, text_tokenizer
from tljax.data.text import TextProcessor

CONTEXT = -1
"""The rank of a token that is no target."""


@dataclasses.dataclass(frozen=True)
class Permuted:
    """Texts, each with an order of its tokens; the last of the order are predicted from those before them.

    In training another order each time; in evaluation one that the record's `id` decides.

    Attributes:
      processor: of the checkpoint.
      share: K of the paper: one token in so many is a target, special ones apart; at least one is.
    """

    makes_targets = True
    random = True
    processor: TextProcessor
    share: int = 6

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The processor's arrays (T,), and `rank` (T,): the place among the targets' order, or −1."""
        if rng is None:
            rng = np.random.default_rng(zlib.crc32(str(record.get("id")).encode()))
        found = dict(self.processor.example(record))
        ids = found["input_ids"]
        order = rng.permutation(np.flatnonzero(~np.isin(ids, text_tokenizer(self.processor).all_special_ids)))
        # A text of one token is its own only context: the first target would be predicted from nothing.
        count = min(max(1, len(order) // self.share), len(order), len(ids) - 1)
        rank = np.full(len(ids), CONTEXT, np.int32)
        rank[order[len(order) - count :]] = np.arange(count)
        return {**found, "rank": rank}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` with `perm_mask` (B, T, T) and `target_mapping` (B, P, T); `targets` (B, P), −100 is none.

        P is a function of T; the targets stand in their order.
        """
        inputs = self.processor.collate([{n: x for n, x in e.items() if n != "rank"} for e in examples])
        tokens = inputs["input_ids"].shape[1]
        rank = np.stack([self.processor.pad(e["rank"], "rank", tokens, CONTEXT) for e in examples])
        mapping = rank[:, None] == np.arange(max(1, tokens // self.share))[:, None]
        labels = np.where(mapping.any(axis=2), (mapping * inputs["input_ids"][:, None]).sum(axis=2), NO_LABEL)
        masks = {"perm_mask": hidden_by_order(rank), "target_mapping": mapping.astype(np.int8)}
        return {"inputs": {**inputs, **masks}, "targets": labels.astype(np.int32)}

    def fixed_shape(self) -> "Permuted":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return {**self.processor.facts, "share": self.share}


def hidden_by_order(rank: np.ndarray) -> np.ndarray:
    """`perm_mask` (B, T, T) int8 from ranks (B, T): 1 where token i must not see token j.

    Context, of rank −1, is seen by all and sees all of itself; a target sees the context and the targets before it. The
    order within the context decides nothing that is predicted.
    """
    return ((rank[:, None] != CONTEXT) & (rank[:, None] >= rank[:, :, None])).astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Blanks:
    """Texts that hold masks, which no token sees and which are asked for, the first `width` of each text."""

    makes_targets = True
    processor: TextProcessor
    width: int = 8

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The processor's arrays; raises `UserError` for a text without a mask."""
        found = self.processor.example(record)
        tokenizer = text_tokenizer(self.processor)
        if not np.any(found["input_ids"] == mask_token(tokenizer)):
            raise UserError(
                f"The record {record.get('id')!r} holds no {tokenizer.mask_token}: write it where a token is to be "
                "found."
            )
        return found

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Tokens of an example."""
        return self.processor.size_of(example)

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` with `perm_mask` (B, T, T) and `target_mapping` (B, P, T), P the `width`."""
        inputs = self.processor.collate(examples)
        blank = inputs["input_ids"] == mask_token(text_tokenizer(self.processor))
        number = np.where(blank, np.cumsum(blank, axis=1) - 1, CONTEXT)
        mapping = number[:, None] == np.arange(self.width)[:, None]
        hidden = np.broadcast_to(blank[:, None], (*blank.shape, blank.shape[1]))
        return {"inputs": {**inputs, "perm_mask": hidden.astype(np.int8), "target_mapping": mapping.astype(np.int8)}}

    def fixed_shape(self) -> "Blanks":
        """With one length for all batches."""
        return dataclasses.replace(self, processor=self.processor.fixed_shape())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        return self.processor.facts
