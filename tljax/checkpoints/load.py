"""`load_pretrained`: a checkpoint as a model, its variables and its processor."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import lookup, suggest
from tljax.base.types import Family, HeadFormat, Model, Pretrained
from tljax.base.weights import Table
from tljax.checkpoints import FORMATS, darknet_format, vectors_format
from tljax.checkpoints.convert import (
    Fit,
    collections_of,
    coverage,
    fit,
    flat_of,
    import_leaves,
    is_finite,
    shape_leaves,
)
from tljax.checkpoints.digest import file_sha256
from tljax.checkpoints.locate import locate
from tljax.checkpoints.sentence_transformers import read_layout
from tljax.checkpoints.tensors import Format, Tensor, open_shards
from tljax.data.processors import load_processor
from tljax.models import FAMILIES, get_family
from tljax.models.forward import init_variables
from tljax.sharding import shardings

IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.npz",
    "model.weights.h5",
    "model.h5",
    "vectors.bin",
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
    ".h5": "keras",
    ".hdf5": "keras",
    ".weights": "darknet",
    ".vec": "vectors",
    ".txt": "vectors",
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
    values: bool = True,
) -> Pretrained:
    """Loads a checkpoint.

    Args:
      source: a local folder or file, `hf:owner/name[@revision]`, `package:NAME/PATH`, or a path of another file system.
        A config.json beside a file belongs to it.
      dtype: of the leaves; None keeps the stored dtypes.
      mesh: leaves go straight to their shards by the family's rules; None puts them on the default device.
      family: for checkpoints that do not say it themselves (`model_type` in config.json).
      sha256: expected digest of the weight file.
      allow_nonfinite: accept NaN and infinity.
      values: False reads no more than the files' headers, and the leaves are `jax.ShapeDtypeStruct`s.

    Returns:
      `Pretrained(model, variables, processor)`; the head is the checkpoint's own, or None.

    Raises:
      UserError: no such checkpoint; a damaged file; weights that do not fit, every fault in one message.
    """
    kind = None if dtype is None else _floating(dtype)
    place = locate(source)
    folder, file = (place, weight_file(place)) if place.is_dir() else (place.parent, place)
    _check_sha256(file, sha256 if values else None)
    text, entries = read_config(folder)
    if not place.is_dir() and family not in (None, entries.get("model_type")):
        # A file that stands by chance beside another model's config.json.
        text, entries = "{}", {}
    sources, file_format = open_weights(file), format_of(file)
    told = file_format.describe(file, sources)
    if entries.get("model_type") != told.get("model_type", entries.get("model_type")):
        text, entries = "{}", {}  # of another model, by chance
    family_entry = _family(family, {**entries, **told}, place)
    if not entries and family_entry.infer is not None:
        told = {**family_entry.infer({name: tensor.shape for name, tensor in sources.items()}), **told}
    if told:
        entries = {**entries, **told}
        text = json.dumps({"model_type": family_entry.name, **entries}, indent=2)
    model, table = describe(family_entry, entries, sources, text)
    if model.head is None and (dense := read_layout(folder)) is not None:
        model, sources = model._replace(head=dense.head), {**sources, **dense.tensors}
        table = table._replace(rows=(*table.rows, *dense.rows))
    targets = flat_of(_shapes(model))
    fitted = fit(table, sources, targets, file=str(file))
    _check_width(fitted, kind)
    if values:
        place_leaf = _placer(family_entry, targets, kind, mesh, allow_nonfinite)
        leaves = import_leaves(fitted, place_leaf, allow_nonfinite=allow_nonfinite)
    else:
        leaves = shape_leaves(fitted, targets, kind)
    variables = collections_of({path: leaves[path] for path in targets})
    # In C's order, which the writers of tensors take for granted.
    extras = {name: np.array(tensor.read(), order="C") for name, tensor in fitted.extras.items() if values}
    variables["extras"] = extras
    beside = load_processor(folder, entries) if entries and text != "{}" else None
    return Pretrained(model, variables, file_format.processor(file, sources, beside))


def _floating(dtype: Any) -> np.dtype:
    try:
        kind = jnp.dtype(dtype)
    except TypeError as error:
        raise UserError(f"dtype is {dtype!r}. {suggest(dtype, ('float32', 'bfloat16', 'float16'))}") from error
    if not jnp.issubdtype(kind, jnp.floating):
        raise UserError(f"dtype is {dtype!r}, and the leaves of a model are floating.")
    return kind


def _check_sha256(file: Path, expected: str | None) -> None:
    if expected is None:
        return
    if file.name.endswith(".index.json"):
        raise UserError(f"sha256 speaks of one file, and {file} names several. Leave it out.")
    if (found := file_sha256(file)) != expected.lower():
        raise UserError(
            f"{file} has the sha256 {found}, and the config expects {expected}: it is another or damaged file."
        )


def _check_width(fitted: Fit, kind: np.dtype | None) -> None:
    """Without x64 JAX turns 64-bit floats into 32-bit ones silently; then the bits that come in do not go out."""
    if kind is None and not jax.config.jax_enable_x64:
        wide = [name for r in fitted.rows for name in r.theirs if fitted.sources[name].dtype.itemsize == 8]
        raise_faults(
            "Tensors are stored as float64. Give dtype='float32', or set JAX_ENABLE_X64=1 to keep them so:", wide
        )


def weight_file(folder: Path) -> Path:
    """The file (or index) of weights in a folder."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (darknet := darknet_format.find_weights(folder)) is not None:
        return darknet
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    raise UserError(
        f"{folder} holds no weights: none of {', '.join(IN_FOLDER)}, *.weights. It holds: "
        f"{', '.join(files) or 'nothing'}."
    )


def open_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, by its suffix."""
    if file.name.endswith(".bin.index.json"):
        return open_shards(file, open_weights)
    return format_of(file).open(file)


def format_of(file: Path) -> Format:
    """The format of a weight file, by its suffix; a `.bin` may hold word vectors too, which its first bytes tell."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: weights are files that end in {', '.join(SUFFIXES)}.")
    name = "vectors" if file.suffix == ".bin" and vectors_format.recognises(file) else SUFFIXES[file.suffix]
    return lookup(FORMATS, name, what="checkpoint format")


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """(text, entries) of a folder's config.json; ("{}", {}) where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return "{}", {}
    try:
        text = path.read_text(encoding="utf8")
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} holds no JSON object.")
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
    """The model that the tensors are, and the table that reads them: prefix, pooler and head are told by the names.

    A checkpoint may lack the pooler (language models are saved without one); then so does the model, unless its head
    reads it. The entry `add_pooling_layer` of the family's config says so; the reference keeps no such entry.
    """
    config = family.configure(entries)
    tables = {"": family.table, **family.spellings}
    pairs = [(spelling, prefix) for spelling in tables for prefix in family.prefixes]
    spelling, prefix = max(pairs, key=lambda pair: coverage(tables[pair[0]](config, pair[1]), sources))
    make_table = tables[spelling]
    if spelling != entries.get("weights_format", ""):
        entries = {name: value for name, value in entries.items() if name != "weights_format"}
        entries = {**entries, "weights_format": spelling} if spelling else entries
        text = json.dumps({"model_type": family.name, **entries}, indent=2)
    head_format = _head_format(family, config, entries, sources)
    if head_format is None and entries.get("tie_word_embeddings") and not getattr(config, "tie_word_embeddings", True):
        # transformers 5 says of every T5 that it is tied, whether it is or not: the tensors tell.
        tied = dataclasses.replace(config, tie_word_embeddings=True)
        head_format = _head_format(family, tied, entries, sources)
        config = tied if head_format is not None else config
    head = None if head_format is None else head_format.head(config, entries)
    if getattr(config, "add_pooling_layer", False) and getattr(head, "pool", None) != "pooled":
        without = family.configure({**entries, "add_pooling_layer": False})
        with_pooler, plain = (coverage(make_table(c, prefix), sources) for c in (config, without))
        config = config if with_pooler > plain else without
    table = make_table(config, prefix)
    if head_format is not None:
        table = table._replace(rows=(*table.rows, *head_format.rows(config)))
    return Model(family.name, config, family.backbone(config), head, text), table


def _head_format(
    family: Family, config: Any, entries: Mapping[str, Any], sources: Mapping[str, Tensor]
) -> HeadFormat | None:
    """The class that config.json names, if it is one of ours and any of its tensors is there (others that it misses are
    faults) or it has none of its own (a tied output embedding); where config.json names none, the class whose tensors
    are all there. Only classes count that belong to the spelling of the weights."""
    spelling = entries.get("weights_format", "")
    names = {
        format_.architecture: [tensor in sources for entry in format_.rows(config) for tensor in entry.theirs]
        for format_ in family.heads.values()
        if format_.spelling == spelling
    }
    stated = entries.get("architectures") or ()
    if stated:
        found = [name for name in stated if name in names and (any(names[name]) or not names[name])]
    else:
        found = [name for name in names if names[name] and all(names[name])]
    chosen = (f for f in family.heads.values() if found and (f.architecture, f.spelling) == (found[0], spelling))
    return next(chosen, None)


def _shapes(model: Model) -> dict[str, Any]:
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))


def _placer(
    family: Family,
    targets: Mapping[str, Any],
    kind: np.dtype | None,
    mesh: jax.sharding.Mesh | None,
    allow_nonfinite: bool,
):
    """(path, array) → leaf on its device or devices, never sharing memory with a map of the file."""
    where = {}
    if mesh is not None:
        rules = (*family.sharding, (r"head/.*", ()), (r"batch_stats:.*", ()))
        where = shardings(rules, targets, mesh)

    def place(path: str, array: np.ndarray) -> jax.Array:
        if kind is not None and array.dtype != kind:
            with np.errstate(over="ignore"):
                array = array.astype(kind)
            if not allow_nonfinite and not is_finite(array):
                raise UserError(f"{path} holds values that {kind} cannot hold. Use dtype='bfloat16' or 'float32'.")
        if mesh is not None:
            return jax.make_array_from_callback(array.shape, where[path], lambda index: np.array(array[index]))
        leaf = jax.device_put(array)
        # A device on the host takes an aligned array as it is, a map of the file too, whatever `may_alias` says of an
        # array of NumPy's; of its own arrays it makes a copy, without a temporary.
        aliased = leaf.unsafe_buffer_pointer() == array.ctypes.data
        return jax.device_put(leaf, may_alias=False) if aliased else leaf

    return place
