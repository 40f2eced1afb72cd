"""The gradient of a residual stream is computed once: a program grows with the number of blocks, not its square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_families import make_model
from tljax.models import get_family, layers, tower
from tljax.models.forward import forward, init_variables

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16, "patch_size": 8}


def operations(blocks: int) -> int:
    """In the compiled gradient of a ViT, those inside of fusions too."""
    model, family = make_model("vit", {**SIZES, "num_hidden_layers": blocks}), get_family("vit")
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]
    inputs = {
        name: jax.ShapeDtypeStruct((2, *spec.shape[1:]), spec.dtype)
        for name, spec in family.inputs(model.config).items()
    }

    def loss(params, inputs):
        outputs, _ = forward(model, {"params": params}, inputs, train=model.backbone.stages)
        return jnp.sum(jnp.sin(outputs["hidden"]))

    text = jax.jit(jax.grad(loss)).lower(params, inputs).compile().as_text()
    return sum(text.count(f" {name}(") for name in ("add", "multiply", "subtract"))


def test_twice_as_many_blocks_are_a_program_twice_as_long(monkeypatch):
    few, some, many = map(operations, (2, 4, 8))
    assert many - some == pytest.approx(2 * (some - few), rel=0.05)
    for module in (layers, tower):
        monkeypatch.setattr(module, "gradient_once", lambda x: x)
    few, some, many = map(operations, (2, 4, 8))
    assert many - some > 2.5 * (some - few), "XLA does without it now: gradient_once can go"


def test_the_softmax_is_that_of_jax():
    scores = jnp.sin(jnp.arange(60.0)).reshape(3, 4, 5).at[1, 2].add(jnp.finfo(jnp.float32).min) * 8
    weights = jnp.cos(jnp.arange(60.0)).reshape(3, 4, 5)
    found, expected = (
        jax.value_and_grad(lambda x, of=of: jnp.sum(of(x) * weights))(scores) for of in (layers.softmax, jax.nn.softmax)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


def test_values_and_gradients_are_as_without():
    x = jnp.linspace(-2.0, 3.0, 12).reshape(3, 4)
    once, plain = (lambda x, f=f: jnp.sum(jnp.sin(f(x)) * x) for f in (layers.gradient_once, lambda x: x))
    for derived in (jax.value_and_grad, lambda f: lambda x: jax.jvp(f, (x,), (x,))):
        found, expected = derived(once)(x), derived(plain)(x)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_model_has_derivatives_forwards_too():
    model, family = make_model("vit", {**SIZES, "num_hidden_layers": 2}), get_family("vit")
    params = init_variables(model, jax.random.key(0))["params"]
    inputs = {name: jnp.ones((1, *spec.shape[1:]), spec.dtype) for name, spec in family.inputs(model.config).items()}

    def loss(params):
        return jnp.sum(jnp.sin(forward(model, {"params": params}, inputs)[0]["hidden"]))

    change = jax.tree.map(jnp.cos, params)
    _, along = jax.jvp(loss, (params,), (change,))
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b), jax.grad(loss)(params), change)
    np.testing.assert_allclose(along, sum(jax.tree.leaves(products)), rtol=1e-4)
