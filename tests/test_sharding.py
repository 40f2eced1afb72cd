"""Meshes and shardings on four simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tljax.base.errors import UserError
from tljax.sharding import batch_sharding, make_mesh, replicated, shardings

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (simulated) devices")
RULES = (
    (r".*/kernel", ("fsdp", "tensor")),
    (r".*/table", (("fsdp", "tensor"), None)),
    (r".*/bias", ()),
)
SHAPES = {
    "backbone/kernel": (8, 6),
    "backbone/odd/kernel": (8, 3),
    "backbone/table": (12, 5),
    "backbone/odd/table": (6, 5),
    "backbone/bias": (6,),
}


def four():
    return jax.devices()[:4]


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, {"data": 4}),
        ({"data": -1}, {"data": 4}),
        ({"data": 2, "fsdp": 2, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 1}),
        ({"fsdp": 2, "tensor": -1}, {"fsdp": 2, "tensor": 2}),
        ({"data": 1}, {"data": 1}),
    ],
)
def test_axes_take_their_sizes(axes, shape):
    assert dict(make_mesh(devices=four(), **axes).shape) == shape


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 8}, "does not fit 4 devices .*\n.*needs 8 devices"),
        ({"data": 3, "fsdp": -1}, "multiple of 3"),
        ({"data": 8, "fsdp": -1}, "multiple of 8"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1"),
        ({"data": 0}, "data is 0"),
        ({"data": 2.0}, "data is 2.0"),
        ({"dta": 4}, "no axis called 'dta'. Did you mean 'data'"),
    ],
)
def test_impossible_meshes_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(devices=four(), **axes)


def test_rules_meet_the_mesh_and_the_shapes():
    mesh = make_mesh(devices=four(), data=1, fsdp=2, tensor=2)
    specs = {path: sharding.spec for path, sharding in shardings(RULES, SHAPES, mesh).items()}
    assert specs == {
        "backbone/kernel": P("fsdp", "tensor"),
        "backbone/odd/kernel": P("fsdp", None),  # 3 is not divisible
        "backbone/table": P(("fsdp", "tensor"), None),
        "backbone/odd/table": P(None, None),
        "backbone/bias": P(),
    }


def test_axes_that_the_mesh_lacks_are_dropped():
    specs = shardings(RULES, SHAPES, make_mesh(devices=four(), fsdp=2, data=2))
    assert specs["backbone/kernel"].spec == P("fsdp", None)
    assert specs["backbone/odd/table"].spec == P("fsdp", None)
    assert shardings(RULES, SHAPES, make_mesh(devices=four()))["backbone/kernel"].is_fully_replicated


def test_faulty_rules_are_listed():
    mesh = make_mesh(devices=four())
    with pytest.raises(UserError, match="no rule covers 'head/scale'"):
        shardings(RULES, {"head/scale": (3,)}, mesh)
    with pytest.raises(UserError) as caught:
        shardings(((".*", ("data", "tensr")),), {"bias": (3,)}, mesh)
    assert "too many entries" in str(caught.value)
    assert "no axis is called 'tensr'. Did you mean 'tensor'" in str(caught.value)
    with pytest.raises(UserError, match="matches no path"):
        shardings(((".*", ()), ("kernle", ())), SHAPES, mesh, strict=True)


def test_a_jitted_step_runs_sharded_and_equals_one_device():
    mesh = make_mesh(devices=four(), data=2, fsdp=2)
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    placed = jax.device_put(kernel, shardings(RULES, {"a/kernel": kernel}, mesh)["a/kernel"])
    batch = jax.device_put(x, batch_sharding(mesh))
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 8)}
    assert {s.data.shape for s in placed.addressable_shards} == {(4, 6)}
    gradient = jax.jit(jax.grad(lambda k, x: jnp.mean(jnp.tanh(x @ k) ** 2)), out_shardings=replicated(mesh))
    expected = jax.grad(lambda k, x: jnp.mean(jnp.tanh(x @ k) ** 2))(kernel, x)
    np.testing.assert_allclose(gradient(placed, batch), expected, atol=1e-6)


def test_a_mesh_without_batch_axes_repeats_the_batch():
    assert batch_sharding(make_mesh(devices=four(), tensor=4)).is_fully_replicated
