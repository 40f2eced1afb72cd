"""Reading a weight table in its two directions.

In a row, a path of ours that begins with `batch_stats:` stands in the collection of running statistics; every other one
stands in `params`. `targets` and results are flat dicts with such paths.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.weights import Row, Table, their_shapes
from tljax.checkpoints.tensors import Tensor

STATS = "batch_stats:"


class Fit(NamedTuple):
    """A table that fits a set of tensors.

    Attributes:
      rows: to be read.
      sources: their name as in the table → tensor.
      extras: their name as in the file → tensor, kept verbatim.
    """

    rows: tuple[Row, ...]
    sources: dict[str, Tensor]
    extras: dict[str, Tensor]


def collections_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat leaves → {"params": tree, "batch_stats": tree}."""
    stats = {path.removeprefix(STATS): leaf for path, leaf in flat.items() if path.startswith(STATS)}
    params = {path: leaf for path, leaf in flat.items() if not path.startswith(STATS)}
    return {"params": unflatten(params), "batch_stats": unflatten(stats)}


def flat_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `collections_of`; other collections are left out."""
    stats = flatten(variables.get("batch_stats", {}))
    return {**flatten(variables["params"]), **{f"{STATS}{path}": leaf for path, leaf in stats.items()}}


def rename(sources: Mapping[str, Tensor], table: Table) -> dict[str, tuple[str, Tensor]]:
    """{name as in the table: (name as in the file, tensor)}. Raises `UserError` where two names become one."""
    found, faults = {}, []
    for name, tensor in sources.items():
        modern = name
        for pattern, replacement in table.renames:
            modern = re.sub(rf"^(?:{pattern})$", replacement, modern)
        if modern in found:
            faults.append(f"{found[modern][0]} and {name} are both {modern}.")
        found[modern] = (name, tensor)
    raise_faults("The checkpoint holds a tensor under two spellings:", faults)
    return found


def coverage(table: Table, sources: Mapping[str, Tensor]) -> int:
    """How many tensors the rows of `table` would read; it tells which prefix a checkpoint uses."""
    names = rename(sources, table)
    return sum(name in names for entry in table.rows for name in entry.theirs)


def fit(
    table: Table, sources: Mapping[str, Tensor], targets: Mapping[str, Any], *, file: str, dtypes: bool = True
) -> Fit:
    """Checks that `table` fills every target exactly once from `sources` and reads every source.

    Args:
      table: of backbone and head.
      sources: tensor name → tensor, as in the file.
      targets: our path → shape, or something with a `shape`.
      file: for messages.
      dtypes: refuse integer tensors where our leaf is floating.

    Raises:
      UserError: one message with every unread source, unfilled or doubly filled target, wrong shape and unequal alias,
        with near misses.
    """
    shapes = {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in targets.items()}
    named = rename(sources, table)
    expected = {name for entry in table.rows for name in entry.theirs}
    unused = [name for name in named if name not in expected]
    near = _Near()
    faults, extras = [], {}
    for entry in table.rows:
        missing = [name for name in entry.theirs if name not in named]
        faults += [f"{name} is missing (for {', '.join(entry.ours)}).{near(name, unused)}" for name in missing]
        if not missing and all(path in shapes for path in entry.ours):
            faults += _shape_faults(entry, their_shapes(entry, shapes), named, dtypes)
    filled = Counter(path for entry in table.rows for path in entry.ours)
    faults += [f"our leaf {path} is filled by no row." for path in shapes if path not in filled]
    faults += [f"our leaf {path} is filled by several rows." for path, count in filled.items() if count > 1]
    faults += [f"the row for {path} has no leaf of ours." for path in filled if path not in shapes]
    for name in unused:
        stored, tensor = named[name]
        if name in table.aliases:
            faults += _alias_faults(name, table.aliases[name], named)
        elif any(re.fullmatch(pattern, name) for pattern in table.extras):
            extras[stored] = tensor
        else:
            faults.append(f"{stored} {tensor.shape} is read by nothing.{near(name, expected - named.keys())}")
    raise_faults(f"The weights of {file} do not fit the model:", faults)
    return Fit(table.rows, {name: tensor for name, (_, tensor) in named.items()}, extras)


def _shape_faults(entry: Row, expected: Sequence[tuple], named: Mapping[str, tuple], dtypes: bool) -> list[str]:
    faults = []
    for name, shape in zip(entry.theirs, expected, strict=True):
        tensor = named[name][1]
        if tuple(tensor.shape) != shape:
            faults.append(f"{name} has the shape {tuple(tensor.shape)}, and {shape} is needed.")
        elif dtypes and not jnp.issubdtype(tensor.dtype, jnp.floating):
            faults.append(f"{name} has the dtype {tensor.dtype}, and a floating one is needed.")
    return faults


def _alias_faults(name: str, original: str, named: Mapping[str, tuple]) -> list[str]:
    if original not in named:
        return [f"{name} is a copy of {original}, which is missing."]
    mine, other = named[name][1], named[original][1]
    same = mine.shape == other.shape and mine.dtype == other.dtype and np.array_equal(mine.read(), other.read())
    return [] if same else [f"{name} should equal {original}, to which it is tied, and does not."]


class _Near:
    """(name, names) → " Near: the most similar one." for the first questions; a wrong family would ask thousands."""

    def __init__(self, limit: int = 40):
        self._left = limit

    def __call__(self, name: str, names: Iterable[str]) -> str:
        self._left -= 1
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.8) if self._left >= 0 else ()
        return f" Near: {near[0]}." if near else ""


def import_leaves(
    fitted: Fit, place: Callable[[str, np.ndarray], Any], *, allow_nonfinite: bool = False
) -> dict[str, Any]:
    """{our path: placed leaf}, one row after another, so that no more than a row is on the host at once.

    Args:
      fitted: from `fit`.
      place: (our path, array) → leaf on its devices; the array may be a view of a memory map.
      allow_nonfinite: accept NaN and infinity.

    Raises:
      UserError: tensors with NaN or infinity, all at once.
    """
    leaves, faults = {}, []
    for entry in fitted.rows:
        arrays = [fitted.sources[name].read() for name in entry.theirs]
        if not allow_nonfinite:
            faults += [
                _nonfinite(name, fitted, x) for name, x in zip(entry.theirs, arrays, strict=True) if not is_finite(x)
            ]
        if not faults:
            for path, array in zip(entry.ours, entry.layout.ours(*arrays), strict=True):
                leaves[path] = place(path, array)
    raise_faults("The checkpoint holds values that are not finite (allow_nonfinite=True accepts them):", faults)
    return leaves


def shape_leaves(fitted: Fit, targets: Mapping[str, Any], dtype: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """{our path: what `import_leaves` would place}, from what is known of the tensors before they are read.

    Args:
      fitted: from `fit`.
      targets: our path → something with a `shape` and a `dtype`.
      dtype: of the leaves; None keeps the stored ones.
    """
    stored = {path: fitted.sources[name].dtype for entry in fitted.rows for path in entry.ours for name in entry.theirs}
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype or stored.get(path, leaf.dtype)) for path, leaf in targets.items()
    }


def _nonfinite(name: str, fitted: Fit, array: np.ndarray) -> str:
    count = int((~np.isfinite(array.astype(np.float64))).sum())
    return f"{name} in {fitted.sources[name].file}: {count} of {array.size} values."


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. Integers always are finite."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    # One pass without a temporary; only a sum that overflows or meets a NaN calls for the exact question.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(array, dtype=np.float64 if array.dtype.kind == "f" else np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(array.astype(np.float64)).all())


def export_leaves(table: Table, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{their name: array}, in the dtypes of our leaves; the inverse of an import through the same table."""
    missing = [path for entry in table.rows for path in entry.ours if path not in flat]
    if missing:
        raise UserError(f"The variables lack {', '.join(missing[:5])}, which the export needs.")
    found = {}
    for entry in table.rows:
        arrays = entry.layout.theirs(*(np.asarray(flat[path]) for path in entry.ours))
        found.update({name: np.asarray(x, order="C") for name, x in zip(entry.theirs, arrays, strict=True)})
    return found
