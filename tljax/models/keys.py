"""Keys of the random numbers of a module, for stages that run one by one and for stages that run under a scan.

flax folds the path of a module, and how many keys it has drawn, into the key of the run. Under a scan one program
stands for several stages, so the path is no constant: it is looked up by the stage whose turn it is. Both ways give the
same numbers.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

TURN = "turn"
"""The flag of a flax scope that holds the `Turn`, inside a scan."""


class Turn(NamedTuple):
    """Whose turn it is in a scan over stages.

    Attributes:
      keys: kind of random number → the key of the run.
      paths: of the stages, each a tuple of names.
      index: which of them runs, an integer or an array of one.
      drawn: (path inside the stage, kind) → keys drawn so far; counted here while the program is traced.
    """

    keys: Mapping[str, jax.Array]
    paths: tuple[tuple[str, ...], ...]
    index: Any
    drawn: dict[tuple[Any, ...], int]


def has_key(module: nn.Module, kind: str) -> bool:
    """Whether `module`, while it runs, was given random numbers of this kind."""
    turn = module.scope.get_flag(TURN, None)
    return module.has_rng(kind) if turn is None else kind in turn.keys


def next_key(module: nn.Module, kind: str = "dropout") -> jax.Array:
    """A key that nobody else has, of `module` while it runs; in place of flax's `make_rng`, which a scan refuses."""
    turn = module.scope.get_flag(TURN, None)
    if turn is None or kind not in turn.keys:
        return module.make_rng(kind)
    place = (*module.scope.path, kind)
    turn.drawn[place] = count = turn.drawn.get(place, 0) + 1
    folded = np.array([path_hash((*path, *module.scope.path, count)) for path in turn.paths], np.uint32)
    return jax.random.fold_in(turn.keys[kind], jnp.asarray(folded)[turn.index])


def path_hash(path: tuple[str | int, ...]) -> int:
    """What flax folds into a key for the names of modules and the number of a draw: four bytes of their SHA-1."""
    digest = hashlib.sha1(usedforsecurity=False)
    for part in path:
        digest.update(part.encode() if isinstance(part, str) else part.to_bytes((part.bit_length() + 7) // 8, "big"))
    return int.from_bytes(digest.digest()[:4], "big")
