"""Rematerialised stages: losses, masks and statistics are those of the plain ones to the bit, gradients to rounding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_families import tiny
from tljax.models.forward import forward
from tljax.models.tower import Tower
from tljax.train.step import KEEP_BARRIERS

DROPS = {"bert": "hidden_dropout_prob", "cifar_resnet": None}


@pytest.mark.parametrize("name", DROPS)
def test_remat_changes_no_gradient_no_mask_and_no_statistic(name):
    _, model, variables, inputs = tiny(name)
    if DROPS[name]:
        config = dataclasses.replace(model.config, **{DROPS[name]: 0.3})
        model = model._replace(config=config, backbone=model.backbone.clone(config=config))

    def gradients(remat):
        def loss(params):
            outputs, updates = forward(
                model,
                {**variables, "params": params},
                inputs,
                rngs={"dropout": jax.random.key(7)},
                train=model.backbone.stages,
                hidden_states=True,
                remat=remat,
            )
            last = outputs["hidden"]
            return jnp.sum(last * jnp.sin(jnp.arange(last.size)).reshape(last.shape)), (outputs, updates)

        run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=KEEP_BARRIERS["cpu"])
        return run(variables["params"])

    (plain, expected), (again, found) = gradients(False), gradients(True)
    jax.tree.map(np.testing.assert_array_equal, plain, again)  # the loss, all hidden states, the statistics
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), expected, found)
    if DROPS[name]:
        other = forward(model, variables, inputs)[0]["hidden"]
        assert not np.allclose(other, plain[1][0]["hidden"], atol=0.01), "dropout was on"


class Block(nn.Module):
    """A stage whose inner activations are eight times as large as what goes in."""

    @nn.compact
    def __call__(self, carry, train):
        inner = jnp.tanh(nn.Dense(8 * 32, name="up")(carry["hidden"]))
        return {**carry, "hidden": carry["hidden"] + nn.Dense(32, name="down")(inner)}


class Deep(Tower):
    def chain(self):
        return {f"block{i}": Block for i in range(8)}


def test_memory_falls_for_the_price_of_a_forward_pass():
    tower, x = Deep(), jnp.ones((32, 16, 32))
    params = jax.eval_shape(tower.init, jax.random.key(0), {"hidden": x})["params"]

    def compiled(how, live):
        """Of a step that trains the blocks from `live` on."""
        parts = ({k: v for k, v in params.items() if (k >= live) == moves} for moves in (True, False))

        def loss(live, frozen):
            return jnp.mean(tower.apply({"params": {**live, **frozen}}, {"hidden": x}, remat=how)["hidden"] ** 2)

        step = jax.jit(jax.grad(loss), compiler_options=KEEP_BARRIERS["cpu"]).lower(*parts).compile()
        return step.memory_analysis().temp_size_in_bytes, step.cost_analysis()["flops"]

    ahead = 8 * 2 * 2 * x.size * 8 * 32  # the products of a forward pass; the value of a block's last is not needed
    (whole, work), (less, more) = compiled(False, "block0"), compiled(True, "block0")
    assert less < 0.5 * whole
    assert 0.45 * ahead < more - work < 1.2 * ahead
    (_, work), (_, more) = compiled(False, "block6"), compiled(True, "block6")
    assert more - work < 1.2 * ahead / 4, "what lies below the lowest live stage is computed once"
