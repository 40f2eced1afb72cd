"""Meshes and shardings on four simulated devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tljax.base.errors import UserError
from tljax.models import FAMILIES, get_family
from tljax.sharding import batch_sharding, check_rules, hybrid_devices, make_mesh, replicated, shardings, to_shards

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


def test_no_convolution_is_split_along_its_inputs_and_its_outputs():
    """With the batch split over a third axis its gradient would be another one: jax 0.10.2, CPU, a mesh 2 × 2 × 2."""
    for family in map(get_family, FAMILIES):
        assert not [rule for rule in family.sharding if len(rule[1]) > 2 and None not in rule[1][-2:]], family.name
    with pytest.raises(UserError, match="Split its outputs alone"):
        check_rules(((".*/kernel", (None, None, "fsdp", "tensor")),), {"a/kernel": (3, 3, 8, 8)}, what="rules")
    check_rules(((".*/kernel", (None, None, None, ("fsdp", "tensor"))),), {"a/kernel": (3, 3, 8, 8)}, what="rules")


def slices(*sizes, named=True):
    """Devices of slices of these sizes, which are told apart by `slice_index`, or by the process."""
    count, devices = iter(range(100)), []
    for number, size in enumerate(sizes):
        own = {"slice_index": number, "process_index": 0} if named else {"process_index": number}
        devices += [SimpleNamespace(id=next(count), platform="cpu", device_kind="cpu", **own) for _ in range(size)]
    return devices


@pytest.mark.parametrize("named", [True, False], ids=["by slice", "by process"])
@pytest.mark.parametrize(
    ("sizes", "dcn", "expected"),
    [
        ({"data": 4, "fsdp": 2}, {"data": 2}, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ({"data": 2, "fsdp": 4}, {"data": 2}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"data": 2, "fsdp": 4}, {"fsdp": -1}, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ({"data": 8}, {"data": -1}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=str,
)
def test_an_axis_of_the_slow_network_has_slices_as_its_outer_part(sizes, dcn, expected, named):
    found = hybrid_devices(slices(4, 4, named=named), sizes, dcn)
    assert np.vectorize(lambda device: device.id)(found).tolist() == expected


def test_two_axes_may_cross_slices():
    found = hybrid_devices(slices(2, 2, 2, 2), {"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2})
    assert np.vectorize(lambda device: device.slice_index)(found).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("devices", "sizes", "dcn", "message"),
    [
        (slices(4, 4), {"data": 8}, {"dta": 2}, "dcn names 'dta', which is no axis of it. Did you mean 'data'"),
        (slices(4, 4), {"data": 8}, {"tensor": 2}, "dcn names 'tensor'"),
        (slices(4, 4), {"data": 8}, {"data": 4}, "must multiply to 2, the number of slices"),
        (slices(4, 4), {"data": 4, "fsdp": 2}, {"data": -1, "fsdp": -1}, "only one entry of dcn may be -1"),
        (slices(4, 4), {"data": 8}, {"data": 0}, "dcn.data is 0"),
        (slices(3, 3), {"data": 3, "fsdp": 2}, {"data": 2}, "data is 3, which 2 slices cannot share evenly"),
        (slices(4, 2), {"data": 2, "fsdp": 3}, {"data": 2}, r"different sizes: \{0: 4, 1: 2\}"),
        (slices(4, 4), {"data": 4}, {"data": 2}, "would leave devices idle"),
        (slices(8), {"data": 8}, {"data": 2}, "8 devices of 1 slices, told apart by their slice_index"),
        (slices(8, named=False), {"data": 8}, {"data": 2}, "told apart by their process"),
    ],
    ids=str,
)
def test_slices_and_sizes_must_fit(devices, sizes, dcn, message):
    with pytest.raises(UserError, match=message):
        hybrid_devices(devices, sizes, dcn)


def test_devices_of_several_slices_need_to_be_told_which_axis_crosses_them():
    with pytest.raises(UserError, match=r"they are of 2 slices. Say .* dcn=dict\(fsdp=2\)"):
        make_mesh(devices=slices(4, 4), fsdp=8)
    assert dict(make_mesh(devices=four(), data=4, dcn={"data": -1}).shape) == {"data": 4}, "one slice is no fault"


PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from tljax.sharding import batch_sharding, make_mesh
mesh = make_mesh(data=4, fsdp=2, dcn=dict(data=-1))
rows = np.arange(16.0).reshape(8, 2)
batch = jax.make_array_from_callback((8, 2), batch_sharding(mesh), lambda index: rows[index])
total = jax.jit(lambda x: (x * x).sum())(batch)
print([[device.process_index for device in row] for row in mesh.devices], float(total))
"""


@pytest.mark.long
def test_two_processes_are_two_slices():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split("\n")[-2] == f"[[0, 0], [0, 0], [1, 1], [1, 1]] {float((np.arange(16) ** 2).sum())}"


TOPOLOGY = """
import numpy as np
from jax.experimental.topologies import get_topology_desc
from tljax.sharding import make_mesh
devices = get_topology_desc(platform="tpu", topology_name="v5p:4x4x4", num_slices=4).devices
mesh = make_mesh(devices=devices, data=8, fsdp=32, dcn=dict(data=-1))
print([sorted({device.slice_index for device in row}) for row in mesh.devices], len({*mesh.devices.flat}))
"""


@pytest.mark.long
def test_the_slices_of_a_pod_as_its_topology_describes_them():
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", TOPOLOGY],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[0], [0], [1], [1], [2], [2], [3], [3]] 256"


@pytest.mark.parametrize("axes", [{"data": 1}, {"fsdp": 4}, {"data": 2, "fsdp": 2}], ids=str)
@pytest.mark.parametrize("kind", ["numpy", "host", "shards"])
def test_what_goes_to_its_shards_keeps_its_values_and_may_be_donated(axes, kind):
    mesh = make_mesh(devices=four(), **axes)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    there = shardings(RULES, {"a/kernel": x}, mesh)["a/kernel"]
    makers = {"numpy": np.copy, "host": jnp.array, "shards": lambda x: jax.device_put(x, there)}
    given = makers[kind](x)
    owned = to_shards(given, there, dtype=jnp.float32, own=True)
    assert owned.sharding == there
    doubled = jax.jit(lambda w: w * 2, donate_argnums=0)(owned)
    np.testing.assert_array_equal(doubled, x * 2)
    np.testing.assert_array_equal(given, x)
    half = to_shards(given, there, dtype=jnp.bfloat16)
    assert np.asarray(half).tobytes() == np.asarray(jnp.asarray(x).astype(jnp.bfloat16)).tobytes()
