"""Towers with wings: nested names, ranges across wings, hidden states by wing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tljax.models.tower import Tower


class Stage(nn.Module):
    width: int

    @nn.compact
    def __call__(self, carry, train):
        return {**carry, "hidden": nn.Dense(self.width, name="dense")(carry["hidden"])}


class Two(Tower):
    def chain(self):
        names = ("encoder/embed", "encoder/block0", "bridge", "decoder/embed", "encoder/last")
        return {name: functools.partial(Stage, width) for width, name in enumerate(names, 2)}


def test_a_wing_nests_its_stages_and_pieces_equal_the_whole():
    tower, carry = Two(), {"hidden": jnp.ones((2, 3))}
    params = tower.init(jax.random.key(0), carry)["params"]
    assert {k: sorted(v) for k, v in params.items()} == {
        "encoder": ["block0", "embed", "last"],
        "decoder": ["embed"],
        "bridge": ["dense"],
    }
    whole = tower.apply({"params": params}, carry, record=True)
    assert [whole["recorded"][stage].shape[1] for stage in tower.stages] == [2, 3, 4, 5, 6]
    half = {"encoder": {k: params["encoder"][k] for k in ("embed", "block0")}}
    middle = tower.apply({"params": half}, carry, stop="bridge")
    end = tower.apply({"params": params}, middle, start="bridge")
    assert np.array_equal(end["hidden"], whole["hidden"])
    assert tower.shared == {}
