"""The leaves of adapters, put beside the kernels that a plan names."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, sibling, unflatten
from tljax.base.types import Adapter, Model
from tljax.checkpoints.peft_format import load_adapter
from tljax.models import get_family
from tljax.models.adapters import DROPOUT, adapters_of
from tljax.models.forward import forward
from tljax.models.prompts import FAMILIES


def with_adapters(
    model: Model, variables: Mapping[str, Any], adapters: Mapping[str, tuple[Adapter, ...]], key: jax.Array
) -> dict[str, Any]:
    """`variables` with the adapters' first values. Each has a key of its own, so that one does not move another's.

    Raises:
      UserError: adapters that the family cannot have; kernels that are no matrices nor 2-D convolutions; kernels whose
        layer has no side branch; a stored adapter that is not the one that the config describes.
    """
    if not adapters:
        return dict(variables)
    kinds = {adapter.name for mine in adapters.values() for adapter in mine}
    raise_faults(
        "config.strategy cannot be used:",
        [
            f"{kind} is for the families {', '.join(FAMILIES[kind])}, and the model is of {model.family}."
            for kind in sorted(kinds & FAMILIES.keys())
            if model.family not in FAMILIES[kind]
        ],
    )
    flat = flatten(variables["params"])
    raise_faults(
        "These kernels cannot have adapters beside them; leave them out of the targets:",
        [
            f"{path} has the shape {flat[path].shape}; it must be a matrix, or the kernel of a 2-D convolution."
            for path in adapters
            if flat[path].ndim not in (2, 4)
        ],
    )
    made = {}
    for path, mine in adapters.items():
        for adapter in mine:
            own = jax.random.fold_in(key, zlib.crc32(f"{path}:{adapter.name}".encode()))
            made |= {sibling(path, leaf): value for leaf, value in adapter.init(own, flat[path]).items()}
    made |= _stored(model, variables, adapters, made)
    found = {**variables, "params": unflatten({**flat, **made})}
    _check_read(model, found, made)
    return found


def _stored(
    model: Model,
    variables: Mapping[str, Any],
    adapters: Mapping[str, tuple[Adapter, ...]],
    made: Mapping[str, Any],
) -> dict[str, Any]:
    """The values of adapters that have a source, which must be the leaves that the config describes."""
    found: dict[str, Any] = {}
    for source in sorted({a.source for mine in adapters.values() for a in mine if a.source is not None}):
        wanted = {
            sibling(path, leaf)
            for path, mine in adapters.items()
            for a in mine
            if a.source == source
            for leaf in a.leaves
            if leaf != "lora/dropout"  # no part of what was learnt
        }
        loaded = load_adapter(source, model, variables, head=False)["params"]
        flat = flatten(loaded)
        stored = {
            f"{module}/{leaf}": flat[f"{module}/{leaf}"]
            for module, mine in adapters_of(flat).items()
            for leaf in flatten(mine)
        }
        faults = [f"it has {path}, which the config does not." for path in sorted(stored.keys() - wanted)[:3]]
        faults += [f"it has no {path}, which the config has." for path in sorted(wanted - stored.keys())[:3]]
        for path in sorted(stored.keys() & wanted):
            if stored[path].shape != made[path].shape:
                faults.append(f"its {path} has the shape {stored[path].shape}, and the config's {made[path].shape}.")
            elif path.endswith("lora/scale") and abs(stored[path] - made[path]) > 1e-6 * abs(made[path]):
                faults.append(f"its {path} is {float(stored[path]):g}, and the config's {float(made[path]):g}.")
        raise_faults(f"The adapter in {source} is not the one that config.strategy describes:", faults[:6])
        found |= stored
    return found


def _check_read(model: Model, variables: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Traces a forward pass, and refuses adapters that no layer reads: they would train and do nothing."""
    inputs = get_family(model.family).inputs(model.config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(variables["params"]))
    paths = list(flatten(shapes))

    def run(leaves, batch_stats, inputs):
        params = unflatten(dict(zip(paths, leaves, strict=True)))
        variables, rngs = {"params": params, "batch_stats": batch_stats}, {DROPOUT: jax.random.key(0)}
        return forward(model._replace(head=None), variables, inputs, rngs=rngs)[0]

    program = jax.make_jaxpr(run)(list(flatten(shapes).values()), variables.get("batch_stats", {}), dict(inputs)).jaxpr
    read = {id(variable) for equation in program.eqns for variable in equation.invars}
    ignored = [p for p, variable in zip(paths, program.invars[: len(paths)], strict=True) if id(variable) not in read]
    ignored = sorted({path for path in ignored if path in made})
    if ignored:
        raise UserError(
            f"{len(ignored)} leaves of adapters are read by no layer of the {model.family} ({ignored[0]} …): only the "
            "layers of tljax.models.layers have side branches. Leave their kernels out of the targets."
        )
