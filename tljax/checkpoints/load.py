"""`load_pretrained`: a checkpoint as a model, its variables and its processor."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError
from tljax.base.tables import lookup, suggest
from tljax.base.types import Family, HeadFormat, Model, Pretrained
from tljax.base.weights import Table
from tljax.checkpoints import FORMATS
from tljax.checkpoints.convert import collections_of, coverage, fit, flat_of, import_leaves
from tljax.checkpoints.digest import file_sha256
from tljax.checkpoints.locate import locate
from tljax.checkpoints.tensors import Tensor
from tljax.models import FAMILIES, get_family
from tljax.models.forward import init_variables
from tljax.sharding import shardings

IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.npz",
)
"""The weight files of a folder, in the order in which they are looked for."""

SUFFIXES = {
    ".safetensors": "safetensors",
    ".json": "safetensors",
    ".npz": "npz",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".th": "torch",
    ".ckpt": "torch",
}
"""Suffix → key of `FORMATS`."""


def load_pretrained(
    source: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    family: str | None = None,
    sha256: str | None = None,
    allow_nonfinite: bool = False,
) -> Pretrained:
    """Loads a checkpoint.

    Args:
      source: a local folder or file, `hf:owner/name[@revision]`, `package:NAME/PATH`, or a path of another file system.
      dtype: of the floating leaves; None keeps the stored dtypes.
      mesh: leaves go straight to their shards by the family's rules; None puts them on the default device.
      family: for checkpoints that do not say it themselves (`model_type` in config.json).
      sha256: expected digest of the weight file.
      allow_nonfinite: accept NaN and infinity.

    Returns:
      `Pretrained(model, variables, processor)`; the head is the checkpoint's own, or None.

    Raises:
      UserError: no such checkpoint; a damaged file; weights that do not fit, every fault in one message.
    """
    place = locate(source)
    folder, file = (place, weight_file(place)) if place.is_dir() else (place.parent, place)
    if sha256 is not None and (found := file_sha256(file)) != sha256:
        raise UserError(
            f"{file} has the sha256 {found}, and the config expects {sha256}: it is another or damaged file."
        )
    text, entries = read_config(folder) if place.is_dir() else ("{}", {})
    sources = open_weights(file)
    family_entry = _family(family, entries, place)
    if not entries and family_entry.infer is not None:
        entries = family_entry.infer({name: tensor.shape for name, tensor in sources.items()})
        text = json.dumps({"model_type": family_entry.name, **entries})
    model, table = describe(family_entry, entries, sources, text)
    targets = flat_of(_shapes(model))
    fitted = fit(table, sources, targets, file=str(file))
    leaves = import_leaves(fitted, _placer(family_entry, targets, dtype, mesh), allow_nonfinite=allow_nonfinite)
    variables = collections_of({path: leaves[path] for path in targets})
    variables["extras"] = {name: np.array(tensor.read()) for name, tensor in fitted.extras.items()}
    return Pretrained(model, variables, _processor(folder, entries) if place.is_dir() else None)


def weight_file(folder: Path) -> Path:
    """The file (or index) of weights in a folder."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    raise UserError(
        f"{folder} holds no weights: none of {', '.join(IN_FOLDER)}. It holds: {', '.join(files) or 'nothing'}."
    )


def open_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, by its suffix."""
    if file.name == "pytorch_model.bin.index.json":
        places = json.loads(file.read_text(encoding="utf8"))["weight_map"]
        shards = {shard: open_weights(file.parent / shard) for shard in sorted(set(places.values()))}
        return {name: shards[shard][name] for name, shard in places.items()}
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: weights are files that end in {', '.join(SUFFIXES)}.")
    return lookup(FORMATS, SUFFIXES[file.suffix], what="checkpoint format")(file)


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """(text, entries) of a folder's config.json; ("{}", {}) where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return "{}", {}
    text = path.read_text(encoding="utf8")
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return text, entries


def _family(name: str | None, entries: Mapping[str, Any], place: Path) -> Family:
    name = name or entries.get("model_type")
    if name is None:
        raise UserError(
            f"{place} does not say what it is (no config.json with a model_type). Name its family. "
            f"{suggest('', FAMILIES)}"
        )
    return get_family(name)


def describe(
    family: Family, entries: Mapping[str, Any], sources: Mapping[str, Tensor], text: str
) -> tuple[Model, Table]:
    """The model that the tensors are, and the table that reads them: prefix, pooler and head are told by the names."""
    config = family.configure(entries)
    prefix = max(family.prefixes, key=lambda p: coverage(family.table(config, p), sources))
    if getattr(config, "add_pooling_layer", False):
        without = family.configure({**entries, "add_pooling_layer": False})
        with_pooler, plain = (coverage(family.table(c, prefix), sources) for c in (config, without))
        config = config if with_pooler > plain else without
    table = family.table(config, prefix)
    head_format = _head_format(family, config, entries, sources)
    head = None
    if head_format is not None:
        head = head_format.head(config, entries)
        table = table._replace(rows=(*table.rows, *head_format.rows(config)))
    return Model(family.name, config, family.backbone(config), head, text), table


def _head_format(
    family: Family, config: Any, entries: Mapping[str, Any], sources: Mapping[str, Tensor]
) -> HeadFormat | None:
    for architecture in entries.get("architectures") or ():
        found = family.heads.get(architecture)
        if found and all(name in sources for entry in found.rows(config) for name in entry.theirs):
            return found
    return None


def _shapes(model: Model) -> dict[str, Any]:
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))


def _placer(family: Family, targets: Mapping[str, Any], dtype: Any, mesh: jax.sharding.Mesh | None):
    """(path, array) → leaf on its device or devices, never sharing memory with a map of the file."""
    where = {}
    if mesh is not None:
        rules = (*family.sharding, (r"head/.*", ()), (r"batch_stats:.*", ()))
        where = shardings(rules, targets, mesh)

    def place(path: str, array: np.ndarray) -> jax.Array:
        if dtype is not None and array.dtype.kind not in "iub":
            array = array.astype(jnp.dtype(dtype))
        if mesh is None:
            return jnp.array(array, copy=True)
        return jax.make_array_from_callback(array.shape, where[path], lambda index: np.array(array[index]))

    return place


def _processor(folder: Path, entries: Mapping[str, Any]) -> Any:
    from tljax.data.processors import load_processor

    return load_processor(folder, entries)
