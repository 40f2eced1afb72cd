"""Rotary position embedding and its scalings for longer texts. Su et al. 2021, https://arxiv.org/abs/2104.09864."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.tables import suggest


class RopeParameters(dict):
    """The entries `rope_parameters` of a config.json: a dict that nobody changes, so that a frozen config holds it."""

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))


NEEDS = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Scalings that are implemented → the numbers that each needs."""


def read_rope(entries: Mapping[str, Any], *, positions: int, theta: float = 10000.0) -> tuple[RopeParameters, list]:
    """The rotary parameters of a config.json, and what is wrong with them.

    Args:
      entries: config.json with `rope_parameters`, or, as before transformers 5, `rope_theta` and `rope_scaling`.
      positions: the model's `max_position_embeddings`.
      theta: the base where none is given.

    Returns:
      (parameters with `rope_type` and `rope_theta` set, faults as texts).
    """
    given = entries.get("rope_scaling") or entries.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        return RopeParameters(), [f"rope_parameters is {given!r}; it must be a table of entries."]
    found = {name: value for name, value in given.items() if value is not None and name != "type"}
    found.setdefault("rope_type", given.get("type") or "default")
    found.setdefault("rope_theta", entries.get("rope_theta") or theta)
    kind = found["rope_type"]
    if kind not in NEEDS:
        return RopeParameters(), [f"The rotary scaling {kind!r} is not implemented. {suggest(kind, NEEDS)}"]
    if kind in ("llama3", "yarn"):
        found.setdefault("original_max_position_embeddings", positions)
        found["original_max_position_embeddings"] = (
            entries.get("original_max_position_embeddings") or found["original_max_position_embeddings"]
        )
    texts = ("rope_type", "truncate")
    faults = [f"The rotary scaling {kind} needs {name}." for name in NEEDS[kind] if name not in found]
    faults += [
        f"The rotary parameter {name} is {value!r}; it must be a number above 0."
        for name, value in found.items()
        if name not in texts and not (isinstance(value, int | float) and value > 0)
    ]
    if found.get("partial_rotary_factor", 1) != 1:
        faults.append(f"partial_rotary_factor is {found['partial_rotary_factor']}. Accepted: 1.")
    return RopeParameters() if faults else RopeParameters(found), faults


def frequencies(parameters: Mapping[str, Any], size: int) -> tuple[np.ndarray, float]:
    """The angle by which each pair of a head turns from one position to the next.

    Args:
      parameters: from `read_rope`.
      size: K of the heads, even.

    Returns:
      (radians (K / 2,) float32, factor on cosine and sine). Linear interpolation: Chen et al. 2023; YaRN: Peng et al.
      2023; llama3: Llama team 2024.
    """
    exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain = (1 / np.float32(parameters["rope_theta"]) ** exponent).astype(np.float32)
    kind = parameters["rope_type"]
    if kind == "linear":
        return plain / np.float32(parameters["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, parameters), 1.0
    if kind == "yarn":
        return _yarn(plain, parameters, size)
    return plain, 1.0


def _llama3(plain: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Long waves are stretched by the factor, short ones kept, those between interpolated."""
    original, low, high = p["original_max_position_embeddings"], p["low_freq_factor"], p["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - keep) * plain / p["factor"] + keep * plain).astype(np.float32)


def _yarn(plain: np.ndarray, p: Mapping[str, Any], size: int) -> tuple[np.ndarray, float]:
    """As llama3, with a ramp over the index of the pair, and sharper attention."""
    original, factor = p["original_max_position_embeddings"], p["factor"]

    def index(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(p["rope_theta"]))

    low, high = index(p.get("beta_fast", 32)), index(p.get("beta_slow", 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    radians = plain / factor * ramp + plain * (1 - ramp)

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    scale = p.get("attention_factor")
    if scale is None:
        both = p.get("mscale") and p.get("mscale_all_dim")
        scale = sharpness(p["mscale"]) / sharpness(p["mscale_all_dim"]) if both else sharpness(1.0)
    return radians.astype(np.float32), float(scale)


def rotate(x: jax.Array, positions: jax.Array, parameters: Mapping[str, Any]) -> jax.Array:
    """Heads `x` (B, T, N, K), turned by their positions (B, T); pairs are (i, i + K / 2)."""
    radians, scale = frequencies(parameters, x.shape[-1])
    angles = (positions.astype(jnp.float32)[..., None] * radians)[:, :, None]
    cos, sin = ((f(angles) * scale).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
