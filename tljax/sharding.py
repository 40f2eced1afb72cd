"""Meshes of devices, where each leaf and each batch lies on them, and how leaves get there.

Three axes: `data` splits the batch and repeats the parameters, `fsdp` splits both, `tensor` splits the
parameters inside a layer. Which of them a mesh has is the config's affair; rules may name all of them.

A pod may be several slices: inside one the devices are joined by fast links (ICI), and slices by the network of the
data centre (DCN). `make_mesh(data=4, fsdp=4, dcn=dict(data=2))` says that the two halves of `data` lie on two slices,
so that nothing but the gradients of `data` crosses the slow network.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tljax.base.errors import raise_faults
from tljax.base.paths import Rules, assign
from tljax.base.tables import suggest

AXES = ("data", "fsdp", "tensor")
"""The names that a mesh may use."""

BATCH_AXES = ("data", "fsdp")
"""The axes that split a batch."""


def make_mesh(
    *, devices: Sequence[jax.Device] | None = None, dcn: Mapping[str, int] | None = None, **axes: int
) -> Mesh:
    """A mesh with the named axes, in the order given: `make_mesh(data=2, fsdp=-1)`.

    Args:
      devices: what to use; None is all devices of the run.
      dcn: axis → over how many slices it reaches, where the devices are of several; what is left of the axis lies
        inside a slice. -1 takes the slices that are left. See `slices_of`.
      **axes: size by name, over all slices; one of them may be -1 and takes the devices that are left. No axis at all
        is `data=-1`. Where one process runs, sizes that need fewer devices than there are use the first ones.

    Raises:
      UserError: an unknown axis, or sizes that the number of devices, or of slices, does not allow.
    """
    axes = axes or {"data": -1}
    devices = list(jax.devices() if devices is None else devices)
    title = f"The mesh {axes} does not fit {len(devices)} devices (config.mesh):"
    faults = [f"there is no axis called {name!r}. {suggest(name, AXES)}" for name in axes if name not in AXES]
    faults += _size_faults(axes)
    raise_faults(title, faults)
    fixed = math.prod(size for size in axes.values() if size != -1)
    rest, left = divmod(len(devices), fixed)
    if -1 in axes.values() and (left or not rest):
        faults.append(f"the fixed sizes need a multiple of {fixed} devices.")
    elif fixed > len(devices):
        faults.append(f"it needs {fixed} devices. Lower a size, or set one to -1.")
    sizes = {name: rest if size == -1 else size for name, size in axes.items()}
    count = math.prod(sizes.values())
    if not faults and count < len(devices) and jax.process_count() > 1:
        faults.append(f"{count} devices would leave some idle, which several processes cannot do.")
    raise_faults(title, faults)
    if dcn:
        return Mesh(hybrid_devices(devices, sizes, dcn), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    slices = {getattr(device, "slice_index", 0) for device in devices[:count]}
    if len(slices) > 1:
        cure = f"Say which axis reaches over them, such as dcn=dict({next(iter(sizes))}={len(slices)})."
        faults.append(f"they are of {len(slices)} slices. {cure}")
    raise_faults(title, faults)
    # Auto: make_mesh's own default, Explicit, makes an ordinary jitted step fail.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices[:count])


def _size_faults(sizes: Mapping[str, Any], what: str = "") -> list[str]:
    faults = [
        f"{what}{name} is {size!r}; a size is a whole number from 1, or -1 for the {'slices' if what else 'devices'} "
        "that are left."
        for name, size in sizes.items()
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1)
    ]
    if list(sizes.values()).count(-1) > 1:
        faults.append(f"only one {'entry of dcn' if what else 'axis'} may be -1.")
    return faults


def slices_of(devices: Sequence[Any]) -> Counter:
    """Slice → how many of the devices are of it: their `slice_index`, or where they have none their process."""
    return Counter(getattr(device, "slice_index", device.process_index) for device in devices)


def hybrid_devices(devices: Sequence[Any], sizes: Mapping[str, int], dcn: Mapping[str, int]) -> np.ndarray:
    """The devices of several slices in the order of a mesh: along each axis a slice's own stand side by side.

    Args:
      devices: all of them, of equally large slices.
      sizes: axis → size over all slices.
      dcn: axis → over how many slices it reaches; -1 for the slices that are left, and 1 for the axes it leaves out.

    Raises:
      UserError: sizes that slices or devices do not allow.
    """
    slices = slices_of(devices)
    told = "slice_index" if hasattr(devices[0], "slice_index") else "process"
    title = (
        f"The mesh {dict(sizes)} with dcn={dict(dcn)} does not fit {len(devices)} devices of "
        f"{len(slices)} slices, told apart by their {told} (config.mesh):"
    )
    unknown = [name for name in dcn if name not in sizes]
    faults = [f"dcn names {name!r}, which is no axis of it. {suggest(name, sizes)}" for name in unknown]
    faults += _size_faults(dcn, "dcn.")
    raise_faults(title, faults)
    fixed = math.prod(size for size in dcn.values() if size != -1)
    outer = {name: dcn.get(name, 1) for name in sizes}
    outer = {name: len(slices) // fixed if size == -1 else size for name, size in outer.items()}
    if math.prod(outer.values()) != len(slices):
        faults.append(f"the sizes of dcn must multiply to {len(slices)}, the number of slices; one of them may be -1.")
    if len({*slices.values()}) > 1:
        faults.append(f"the slices are of different sizes: {dict(sorted(slices.items()))}.")
    faults += [
        f"{name} is {size}, which {outer[name]} slices cannot share evenly."
        for name, size in sizes.items()
        if outer[name] > 0 and size % outer[name]
    ]
    if math.prod(sizes.values()) != len(devices):
        faults.append("it would leave devices idle, which a mesh over slices cannot do. Set one size to -1.")
    raise_faults(title, faults)
    inner = [size // outer[name] for name, size in sizes.items()]
    # An axis of the mesh may take a part of one of the torus, as `jax.make_mesh` allows for v5e: better than an error.
    return mesh_utils.create_hybrid_device_mesh(
        inner,
        list(outer.values()),
        devices,
        process_is_granule=told == "process",
        allow_split_physical_axes=True,
    )


@contextmanager
def on_host() -> Iterator[None]:
    """New arrays lie in the memory of the host, and not on the first accelerator, until somebody places them."""
    device = host_device()
    with nullcontext() if device is None else jax.default_device(device):
        yield


def host_device() -> jax.Device | None:
    """The host as a device; None where arrays lie there anyway, or where JAX_PLATFORMS leaves it out."""
    if jax.default_backend() == "cpu":
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def to_shards(leaf: Any, sharding: NamedSharding, *, dtype: Any = None, own: bool = False) -> Any:
    """`leaf` in its shards. Each is cut on the host and goes to its own device, so that none ever has the whole leaf.

    Args:
      leaf: an array of NumPy's, or of the host's, or one that is in shards already; or a `jax.ShapeDtypeStruct`, of
        which comes one that is placed.
      sharding: where it goes.
      dtype: that it takes; None keeps its own.
      own: nobody else may hold its buffers, for a step will donate them.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)
    spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    if spread or sharding.num_devices == 1:
        leaf = jax.device_put(leaf, sharding, may_alias=False if own else None)
        return jax.device_put(jnp.asarray(leaf, dtype), sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: np.array(whole[index], dtype))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays with a leading batch axis: split over `data` and `fsdp`, the rest of each array whole."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


def parts_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays (parts, examples, …) of a batch that was cut into parts: each part split as a batch is."""
    return NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(rules: Rules, shapes: Mapping[str, Any], mesh: Mesh, *, strict: bool = False) -> dict[str, NamedSharding]:
    """Where each leaf lies.

    Args:
      rules: (regular expression over paths, tuple with one entry for each dimension: an axis, a tuple of axes,
        or None); full match, first match wins. A shorter tuple leaves the last dimensions whole.
      shapes: path → shape, or something with a `shape`.
      mesh: axes that it does not have are dropped from the rules; a dimension that the axes do not divide is
        not split.
      strict: a rule that decides no leaf is an error. A family's rules speak of all its variants, so they are not
        strict; a user's are.

    Raises:
      UserError: leaves that no rule covers, axes that no mesh can have, and entries for more dimensions than the
        leaf has; all at once.
    """
    shapes = {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in shapes.items()}
    chosen = assign(rules, shapes, what="the sharding", strict=strict)
    raise_faults("The sharding rules do not fit:", _entry_faults(chosen, shapes))
    return {path: NamedSharding(mesh, _spec(chosen[path], shapes[path], mesh)) for path in shapes}


def check_rules(rules: Rules, shapes: Mapping[str, Any], *, what: str) -> None:
    """Raises `UserError` for rules of a user, which come before a family's, that do not fit; all faults at once.

    Those are rules that are no pairs of an expression and a tuple, that decide no leaf, that name axes which no mesh
    has, or more of them than the leaf has dimensions, or that split a convolution's inputs and outputs.
    """
    example = '(".*/up/kernel", ("fsdp", "tensor"))'
    pairs = [isinstance(rule, (list, tuple)) and len(rule) == 2 and isinstance(rule[0], str) for rule in rules]
    faults = [
        f"{rule!r} is no pair of an expression and one entry for each dimension, such as {example}."
        for rule, pair in zip(rules, pairs, strict=True)
        if not pair or not isinstance(rule[1], (list, tuple))
    ]
    raise_faults(f"The rules of {what} do not fit:", faults)
    shapes = {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in shapes.items()}
    chosen = assign(rules, shapes, what=what, default=())
    # With the batch split over a third axis, XLA then computes another gradient (jax 0.10.2, data 2, fsdp 2, tensor 2).
    faults = [
        f"{path!r}: {entries} splits the inputs and the outputs of a convolution. Split its outputs alone."
        for path, entries in chosen.items()
        if len(entries) == len(shapes[path]) > 2 and None not in entries[-2:]
    ]
    raise_faults(f"The rules of {what} do not fit:", faults + _entry_faults(chosen, shapes))


def _entry_faults(chosen: Mapping[str, Sequence[Any]], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with the entries that rules gave to leaves."""
    faults = []
    for path, entries in chosen.items():
        if len(entries) > len(shapes[path]):
            faults.append(f"{path!r} has the shape {shapes[path]}; {entries} has too many entries.")
        names = [name for entry in entries for name in _names(entry)]
        faults += [f"{path!r}: no axis is called {n!r}. {suggest(n, AXES)}" for n in names if n not in AXES]
        faults += [f"{path!r}: {entries} names {n} twice." for n in AXES if names.count(n) > 1]
    return faults


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _spec(entries: Sequence[Any], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    parts: list[Any] = []
    for entry, size in zip(entries, shape, strict=False):
        names = tuple(name for name in _names(entry) if name in mesh.shape)
        divides = names and size % math.prod(mesh.shape[name] for name in names) == 0
        parts.append((names[0] if len(names) == 1 else names) if divides else None)
    return PartitionSpec(*parts)
