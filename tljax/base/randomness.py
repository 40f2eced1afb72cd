"""The random numbers of training: a generator whose bits cost next to nothing, and do not depend on the mesh.

Dropout draws a number for every activation. On a CPU jax's own generators take a fifth of a step of LoRA for them, and
this one next to nothing (`python -m benchmarks.layers`). A number is a function of the key and of its place in the
array alone, so it fuses into what uses it, needs no memory, and does not depend on the mesh.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

PLACES = 2**32
"""So many places of an array are told apart by one 32-bit counter."""


def training_key(seed: int) -> jax.Array:
    """The key of a run; `jax.random` takes it as any other."""
    return jax.random.key(seed, impl=MIXED)


def mixed(x: jax.Array) -> jax.Array:
    """A bijection of uint32, each bit of which flips half of the others; the constants are C. Wellons's `lowbias32`
    (github.com/skeeto/hash-prospector, public domain), found by search for the least bias."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def random_bits(key: jax.Array, width: int, shape: Sequence[int]) -> jax.Array:
    """Random unsigned integers of `width` bits (8, 16, 32 or 64).

    The place is mixed with one half of the key, and the result with the other: four multiplications a number. That is
    enough for masks and noise; nothing here is fit for secrets.

    Args:
      key: (2,), uint32.
    """
    if width == 64:
        high, low = (random_bits(mixed(key + jnp.uint32(half)), 32, shape).astype(jnp.uint64) for half in (1, 2))
        return (high << 32) | low
    x = jnp.broadcast_to(key[0], shape)
    for places in counters(shape):
        x = mixed(x ^ places)
    x = mixed(x + key[1])
    return (x >> (32 - width)).astype(jnp.dtype(f"uint{width}"))


def counters(shape: Sequence[int], most: int = PLACES) -> Iterator[jax.Array]:
    """Arrays of `shape`, uint32, that together tell its places apart: one, or several where there are more than `most`.

    Each counts the places of some neighbouring axes, the last ones first.
    """
    group: list[int] = []
    for axis in reversed(range(len(shape))):
        if group and math.prod(shape[each] for each in (axis, *group)) > most:
            yield _counter(shape, group)
            group = []
        group.insert(0, axis)
    yield _counter(shape, group)


def _counter(shape: Sequence[int], axes: Sequence[int]) -> jax.Array:
    found, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(axes):
        found = found + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return found


# Keys are few, and made by threefry, as jax makes its own.
MIXED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    fold_in=threefry_prng_impl.fold_in,
    random_bits=random_bits,
    name="mixed",
    tag="mix",
)
