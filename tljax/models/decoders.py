"""What decoders share: their inputs, who sees whom, the key–value cache, attention with grouped heads."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.models.layers import attention

CARRY = {
    **dict.fromkeys(("input_ids", "mask", "position_ids", "segment_ids", "hidden", "cache"), "example"),
    "cache_index": "broadcast",
    "word_embeddings": "broadcast",
}
"""The carry of a decoder. `segment_ids`, `cache` and its index exist only where the inputs hold them, and
`word_embeddings` only where the output embedding is tied to them."""


def start(inputs: Mapping[str, Any], *, what: str, positions: int) -> dict[str, Any]:
    """The first carry of a decoder.

    Args:
      inputs: `input_ids` (B, T); optionally `attention_mask` (B, T), `position_ids` (B, T), `segment_ids` (B, T) for
        several texts in a row (a token sees its own text only, and positions start anew with each; one below 0 is of a
        prompt, which every text sees, and stands after), `cache` with
        `cache_index` (then `attention_mask` is (B, S), over the slots of the cache).
      what: the kind of model, for the message.
      positions: how many the model has.

    Raises:
      UserError: no `input_ids`, shapes that do not agree, more tokens than positions.
    """
    if inputs.get("input_ids") is None:
        raise UserError(f"{what} reads `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    given = {name: value for name, value in inputs.items() if value is not None}
    ids, cache = given["input_ids"], given.get("cache")
    slots = ids.shape if cache is None else (ids.shape[0], jax.tree.leaves(cache)[0].shape[1])
    expected = {"attention_mask": slots, "position_ids": ids.shape, "segment_ids": ids.shape}
    faults = [
        f"{name} has the shape {given[name].shape}, and {shape} is needed."
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    if slots[1] > positions:
        faults.append(
            f"An input has {slots[1]} tokens, and the model has {positions} positions. Lower the processor's "
            "max_length, or max_new_tokens."
        )
    if cache is not None and "segment_ids" in given:
        faults.append("segment_ids pack texts for training; with a cache there is one text a row.")
    raise_faults("These inputs do not fit the model:", faults)
    carry = {
        "input_ids": ids,
        "mask": given.get("attention_mask", jnp.ones(slots, jnp.int32)),
        "position_ids": given["position_ids"] if "position_ids" in given else _positions(ids, given),
    }
    return {**carry, **{name: given[name] for name in ("segment_ids", "cache", "cache_index") if name in given}}


def _positions(ids: jax.Array, given: Mapping[str, Any]) -> jax.Array:
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    if "segment_ids" in given:
        segments = given["segment_ids"]
        first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        order = order - jax.lax.cummax(jnp.where(first, order, 0), axis=1)
        # Each text stands after the prompt, if there is one.
        return order + jnp.where(segments < 0, 0, jnp.sum(segments < 0, axis=1, keepdims=True))
    return order + given["cache_index"] if "cache" in given else order


def visible(carry: Mapping[str, Any], window: int = 0) -> jax.Array:
    """(B, 1, T, S), true where a token sees a slot: not later, not masked, of its text, among the last `window` slots.

    A `window` of 0 is none.
    """
    tokens, slots = carry["position_ids"].shape[1], carry["mask"].shape[1]
    own = jnp.arange(tokens)[:, None] + carry.get("cache_index", 0)
    distance = own - jnp.arange(slots)
    near = (distance >= 0) & (distance < window) if window else distance >= 0
    seen = near[None] & (carry["mask"] > 0)[:, None]
    if "segment_ids" in carry:
        own, other = carry["segment_ids"][:, :, None], carry["segment_ids"][:, None]
        seen &= (own == other) | (other < 0)
    return seen[:, None]


def remember(
    carry: Mapping[str, Any], stage: str | None, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Writes the new keys and values into the cache, if there is one.

    Returns:
      (keys, values) to attend to, (B, S, N, K) with a cache, and the carry with the new cache.
    """
    carry = dict(carry)
    if "cache" not in carry:
        return k, v, carry
    new = {}
    for kind, x in (("key", k), ("value", v)):
        old = carry["cache"][f"{stage}/{kind}"]
        at = (0, carry["cache_index"], 0, 0)
        new[f"{stage}/{kind}"] = jax.lax.dynamic_update_slice(old, x.astype(old.dtype), at)
    k, v = new.values()
    return k, v, {**carry, "cache": {**carry["cache"], **new}}


def empty_cache(layers: int, batch: int, length: int, heads: int, size: int, dtype: Any) -> dict[str, jax.Array]:
    """Zeros: `block0/key`, `block0/value` … each (B, S, N, K)."""
    names = [f"block{i}/{kind}" for i in range(layers) for kind in ("key", "value")]
    return {name: jnp.zeros((batch, length, heads, size), dtype) for name in names}


def grouped_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    module: nn.Module | None = None,
) -> jax.Array:
    """Attention in which several query heads share a key and a value head. Ainslie et al. 2023.

    Args:
      q: (B, T, N, K).
      k, v: (B, S, M, K), N a multiple of M.
      mask: (B, 1, T, S).
      drop: dropout of the probabilities, or None.
      module: as for `attention`.

    Returns:
      (B, T, N, K).
    """
    batch, tokens, heads, size = q.shape
    groups = heads // k.shape[2]
    if groups == 1:
        return attention(q, k, v, mask, drop=drop, module=module)
    # The heads of a group stand as further tokens of their shared head: keys and values are never repeated.
    q = q.reshape(batch, tokens, -1, groups, size).swapaxes(2, 3).reshape(batch, tokens * groups, -1, size)
    y = attention(q, k, v, jnp.repeat(mask, groups, axis=2), drop=drop, module=module)
    return y.reshape(batch, tokens, groups, -1, size).swapaxes(2, 3).reshape(batch, tokens, heads, size)


def finish(carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled None, mask, and `word_embeddings` (V, D) and `cache` where there are any."""
    outputs = {"hidden": carry["hidden"], "pooled": None, "mask": carry["mask"]}
    return {**outputs, **{name: carry[name] for name in ("word_embeddings", "cache") if name in carry}}
