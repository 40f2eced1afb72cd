"""What an XLNet reads: texts, orders of factorisation, targets, memory; distances, and who sees whom."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults


def start(config: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry.

    Args:
      config: the family's.
      inputs: `input_ids` (B, T). Optionally `attention_mask` (B, T), 1 for real tokens; `token_type_ids` (B, T);
        `perm_mask` (B, T, T), 1 where token i must not see token j; `target_mapping` (B, P, T), 1 where prediction p is
        about token j, which starts the query stream and needs a `perm_mask`; `mems`, the memory of the text before,
        `block0` … → (B, M, D) or a sequence of these (see `empty_memory`).

    Raises:
      UserError: no `input_ids`, shapes that do not agree, targets without a `perm_mask`.
    """
    if inputs.get("input_ids") is None:
        raise UserError(f"XLNet reads `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    given = {name: value for name, value in inputs.items() if value is not None}
    ids = given["input_ids"]
    batch, tokens = ids.shape
    mapping = given.get("target_mapping")
    shapes = {
        **dict.fromkeys(("attention_mask", "token_type_ids"), ids.shape),
        "perm_mask": (batch, tokens, tokens),
        "target_mapping": (batch, mapping.shape[1] if mapping is not None and mapping.ndim > 1 else "P", tokens),
    }
    faults = [
        f"{name} has the shape {given[name].shape}, and {shape} is needed."
        for name, shape in shapes.items()
        if name in given and given[name].shape != shape
    ]
    if mapping is not None and "perm_mask" not in given:
        faults.append("target_mapping is given without perm_mask: a prediction would see the token that it is about.")
    mems, wrong = _memory(config, given.get("mems"), batch)
    raise_faults("These inputs do not fit the model:", faults + wrong)
    carry = {
        "input_ids": ids,
        "mask": given.get("attention_mask", jnp.ones_like(ids)),
        "positions": distances(config, tokens, tokens + (0 if mems is None else mems["block0"].shape[1])),
    }
    if config.bi_data:
        carry["backward"] = (jnp.arange(batch) >= batch - batch // 2).astype(jnp.int32)
    carry |= {name: given[name] for name in ("token_type_ids", "perm_mask", "target_mapping") if name in given}
    return carry if mems is None else {**carry, "mems": mems}


def _memory(config: Any, mems: Any, batch: int) -> tuple[dict[str, jax.Array] | None, list[str]]:
    """The memory by stage, or None, and what is wrong with it."""
    if mems is None:
        return None, []
    stages = [f"block{i}" for i in range(config.n_layer)]
    if not isinstance(mems, Mapping):
        mems = dict(zip(stages, mems, strict=True)) if len(mems) == len(stages) else dict(enumerate(mems))
    if set(mems) != set(stages):
        return None, [f"mems has {len(mems)} arrays: {', '.join(map(str, mems))}; {', '.join(stages)} are needed."]
    length = mems["block0"].shape[1] if mems["block0"].ndim > 1 else 0
    shape = (batch, length, config.d_model)
    return {stage: mems[stage] for stage in stages}, [
        f"mems of {stage} has the shape {mems[stage].shape}, and {shape} is needed."
        for stage in stages
        if mems[stage].shape != shape
    ]


def empty_memory(config: Any, batch: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """The memory before the first segment of a text: `block0` … → (B, 0, D). With it, `mems` comes out."""
    return {f"block{i}": jnp.zeros((batch, 0, config.d_model), dtype) for i in range(config.n_layer)}


def distances(config: Any, tokens: int, keys: int) -> jax.Array:
    """Encodings (1, L, D) of the distances from `keys` down, query minus key: sines, then cosines (Dai et al. 2019).

    They go down to 1 − `tokens`, or to 0 where no later token is seen. With `bi_data` there are two of them, (2, L, D):
    the second, of opposite sign, is for the later half of the batch, whose texts run backwards.
    """
    last = 0 if config.attn_type == "uni" else 1 - tokens
    distance = jnp.arange(keys, last - 1, -1, dtype=jnp.float32)
    both = jnp.stack([distance, -distance]) if config.bi_data else distance[None]
    if config.clamp_len is not None and config.clamp_len > 0:
        both = jnp.clip(both, -config.clamp_len, config.clamp_len)
    steps = jnp.arange(0, config.d_model, 2, dtype=jnp.float32) / config.d_model
    angles = both[..., None] * (1 / 10000**steps)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def visible(config: Any, carry: Mapping[str, Any], memory: int) -> tuple[jax.Array, jax.Array]:
    """Two masks: (B, T, S), true where a token's query sees a key; (1, T, S), true for a token's own key.

    Keys are the `memory` first ones and then the text. Content sees itself, whatever the first mask says.
    """
    batch, tokens = carry["mask"].shape
    hidden = (carry["mask"] == 0)[:, None]
    if "perm_mask" in carry:
        hidden = hidden | (carry["perm_mask"] > 0)
    seen = jnp.pad(
        ~jnp.broadcast_to(hidden, (batch, tokens, tokens)), ((0, 0), (0, 0), (memory, 0)), constant_values=True
    )
    ahead = jnp.arange(memory + tokens) - jnp.arange(tokens)[:, None]
    if config.attn_type == "uni":
        seen &= ahead <= memory
        if config.same_length:
            seen &= ahead >= 0
    return seen, (ahead == memory)[None]


def other_segment(types: jax.Array, memory: int) -> jax.Array:
    """(B, T, S), true where a key is of another segment than the query; the `memory` first keys are of segment 0."""
    return types[:, :, None] != jnp.pad(types, ((0, 0), (memory, 0)))[:, None]
