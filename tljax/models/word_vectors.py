"""Static word vectors as a tower of one stage: word2vec, GloVe, fastText (their readers are in the checkpoints room).

Mikolov et al. 2013, https://arxiv.org/abs/1301.3781; Pennington et al. 2014; Bojanowski et al. 2017.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.base.types import Family
from tljax.base.weights import AS_IS, Table, row
from tljax.models.adapters import linear
from tljax.models.configs import read_config
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class WordVectorsConfig:
    """V words, each with a vector of D numbers."""

    words: int = 400_000
    hidden_size: int = 300


def configure(entries: Mapping[str, Any]) -> WordVectorsConfig:
    """config.json → `WordVectorsConfig`."""
    return read_config(WordVectorsConfig, entries, what="word vectors", accepted={})


class Lookup(nn.Module):
    """A word's vector; zeros for the tokens V (unknown) and V + 1 (padding), which no mean counts."""

    config: WordVectorsConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        shape = (self.config.words, self.config.hidden_size)
        table = self.param("embedding", nn.initializers.truncated_normal(0.02), shape)
        ids = carry["input_ids"]

        def look_up(ids: jax.Array, table: jax.Array) -> jax.Array:
            return jnp.take(table, ids, axis=0, mode="fill", fill_value=0)

        hidden = linear(self, ids, table, None, look_up)
        return {"hidden": hidden, "mask": carry["mask"] * (ids < shape[0])}


class WordVectors(Tower):
    """`embed` alone."""

    config: WordVectorsConfig

    def chain(self) -> dict[str, Any]:
        return {"embed": functools.partial(Lookup, self.config)}


def start(config: WordVectorsConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Ids (B, T) and their mask, of ones where it is absent."""
    if "input_ids" not in inputs:
        raise UserError(f"Word vectors read `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return {"input_ids": ids, "mask": jnp.ones_like(ids) if mask is None else mask}


FAMILY = Family(
    name="word_vectors",
    configure=configure,
    backbone=WordVectors,
    carry=dict.fromkeys(("input_ids", "mask", "hidden"), "example"),
    start=start,
    finish=lambda config, carry: {"hidden": carry["hidden"], "pooled": None, "mask": carry["mask"]},
    inputs=lambda config: {name: jax.ShapeDtypeStruct((1, 8), jnp.int32) for name in ("input_ids", "attention_mask")},
    table=lambda config, prefix: Table(
        rows=(row(f"{prefix}vectors", "backbone/embed/embedding", AS_IS),), extras=(r"words",)
    ),
    prefixes=("",),
    heads={},
    own_pool="mean",
    sharding=((r"backbone/embed/embedding", ("tensor", "fsdp")),),
    variants={
        "glove.6B.300d": {"words": 400_000, "hidden_size": 300},
        "word2vec-google-news-300": {"words": 3_000_000, "hidden_size": 300},
        "crawl-300d-2M": {"words": 2_000_000, "hidden_size": 300},
    },
    infer=lambda shapes: dict(zip(("words", "hidden_size"), shapes["vectors"], strict=True)),
)
