"""Where the leaves of an experiment lie: the section `mesh` of a config."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import Rules
from tljax.base.tables import call, suggest
from tljax.models import adapters, get_family, quantized
from tljax.sharding import AXES, check_rules, make_mesh, replicated, shardings

FROZEN = ("sharded", "replicated")
REST = ((r"(head|method|teacher|carried)/.*", ()),)
"""What no family speaks of: every device has it whole."""


class Placement(NamedTuple):
    """What the section `mesh` of a config says of leaves.

    Attributes:
      rules: (expression over paths, a tuple with an axis, a tuple of axes, or None for each dimension), as families
        have them; they come before the family's own.
      frozen: "sharded": frozen leaves lie as live ones would. "replicated": every device has them whole, so that no
        step gathers them, for as many times the memory.
    """

    rules: Rules = ()
    frozen: str = "sharded"


def mesh_of(section: Mapping[str, Any] | None, devices: Sequence[jax.Device] | None = None) -> tuple[Mesh, Placement]:
    """The mesh and the placement that `config.mesh` describes.

    Args:
      section: sizes of axes, `dcn`, and the fields of `Placement`.
      devices: None is all devices of the run.

    Raises:
      UserError: a name that is none of these, sizes that do not fit the devices.
    """
    section = dict(section or {})
    accepted = (*AXES, "dcn", *Placement._fields)
    unknown = [name for name in section if name not in accepted]
    raise_faults(
        "The section config.mesh cannot be used:",
        [f"config.mesh.{name} is no axis and no option. {suggest(name, accepted)}" for name in unknown],
    )
    own = {name: section.pop(name) for name in Placement._fields if name in section}
    placement = call(Placement, (), own, where="config.mesh")
    if placement.frozen not in FROZEN:
        raise UserError(f"config.mesh.frozen is {placement.frozen!r}. {suggest(placement.frozen, FROZEN)}")
    return call(make_mesh, (), {**section, "devices": devices}, where="config.mesh"), placement


def places(
    family: str, shapes: Mapping[str, Any], mesh: Mesh, placement: Placement, *, frozen: bool = False
) -> dict[str, NamedSharding]:
    """Path → where the leaf lies: by the user's rules, else by those of adapters, of the family, and of the rest.

    Args:
      family: of the model.
      shapes: path → leaf.
      mesh: of the run.
      placement: of the run.
      frozen: whether these are frozen leaves.
    """
    if frozen and placement.frozen == "replicated":
        return dict.fromkeys(shapes, replicated(mesh))
    rules = (*placement.rules, *adapters.SHARDING, *quantized.SHARDING, *get_family(family).sharding, *REST)
    found = shardings(rules, _kernels(shapes), mesh)
    return {path: found[quantized.kernel_path(path)] for path in shapes}


def check_placement(placement: Placement, shapes: Mapping[str, Any]) -> None:
    """Raises `UserError` where `config.mesh.rules` do not fit the leaves of a whole experiment."""
    check_rules(placement.rules, _kernels(shapes), what="config.mesh.rules")


def _kernels(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a kernel in few bits lie as the kernel would, and rules name it by the kernel's path."""
    return {quantized.kernel_path(path): leaf for path, leaf in shapes.items()}
