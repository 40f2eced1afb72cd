"""Meshes of devices, and where each leaf and each batch lies on them.

Three axes: `data` splits the batch and repeats the parameters, `fsdp` splits both, `tensor` splits the
parameters inside a layer. Which of them a mesh has is the config's affair; rules may name all of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tljax.base.errors import raise_faults
from tljax.base.paths import Rules, assign
from tljax.base.tables import suggest

AXES = ("data", "fsdp", "tensor")
"""The names that a mesh may use."""

BATCH_AXES = ("data", "fsdp")
"""The axes that split a batch."""


def make_mesh(*, devices: Sequence[jax.Device] | None = None, **axes: int) -> Mesh:
    """A mesh with the named axes, in the order given: `make_mesh(data=2, fsdp=-1)`.

    Args:
      devices: what to use; None is all devices of the run.
      **axes: size by name; one of them may be -1 and takes the devices that are left. No axis at all is
        `data=-1`. Where one process runs, sizes that need fewer devices than there are use the first ones.

    Raises:
      UserError: an unknown axis, or sizes that the number of devices does not allow.
    """
    axes = axes or {"data": -1}
    devices = list(jax.devices() if devices is None else devices)
    title = f"The mesh {axes} does not fit {len(devices)} devices (config.mesh):"
    faults = [f"there is no axis called {name!r}. {suggest(name, AXES)}" for name in axes if name not in AXES]
    faults += [
        f"{name} is {size!r}; a size is a whole number from 1, or -1 for the devices that are left."
        for name, size in axes.items()
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1)
    ]
    if list(axes.values()).count(-1) > 1:
        faults.append("only one axis may be -1.")
    raise_faults(title, faults)
    fixed = math.prod(size for size in axes.values() if size != -1)
    rest, left = divmod(len(devices), fixed)
    if -1 in axes.values() and (left or not rest):
        faults.append(f"the fixed sizes need a multiple of {fixed} devices.")
    elif fixed > len(devices):
        faults.append(f"it needs {fixed} devices. Lower a size, or set one to -1.")
    sizes = tuple(rest if size == -1 else size for size in axes.values())
    count = math.prod(sizes)
    if not faults and count < len(devices) and jax.process_count() > 1:
        faults.append(f"{count} devices would leave some idle, which several processes cannot do.")
    raise_faults(title, faults)
    # Auto: make_mesh's own default, Explicit, makes an ordinary jitted step fail.
    return jax.make_mesh(sizes, tuple(axes), (AxisType.Auto,) * len(axes), devices=devices[:count])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays with a leading batch axis: split over `data` and `fsdp`, the rest of each array whole."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


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
    faults = []
    for path, entries in chosen.items():
        if len(entries) > len(shapes[path]):
            faults.append(f"{path!r} has the shape {shapes[path]}; {entries} has too many entries.")
        names = [name for entry in entries for name in _names(entry)]
        faults += [f"{path!r}: no axis is called {n!r}. {suggest(n, AXES)}" for n in names if n not in AXES]
    raise_faults("The sharding rules do not fit:", faults)
    return {path: NamedSharding(mesh, _spec(chosen[path], shapes[path], mesh)) for path in shapes}


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
