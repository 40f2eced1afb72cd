"""`save_pretrained`: a model and its variables as the folder that the reference library loads back."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tljax.base.errors import RunError, UserError
from tljax.base.types import Family, HeadFormat, Model
from tljax.checkpoints.convert import export_leaves, flat_of
from tljax.checkpoints.sentence_transformers import write_layout
from tljax.models import get_family
from tljax.models.heads import Classifier, Embedding

SHARD_BYTES = 5_000_000_000


def save_pretrained(
    model: Model,
    variables: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    processor: Any = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Writes `folder` whole or not at all.

    Leaves keep their dtypes; a leaf that training did not touch keeps its bytes. A head that a class of transformers
    computes is written with it (`AutoModelFor….from_pretrained(folder)` loads it with no missing and no unexpected
    keys). A mean-pooled or normalised head on a text model, which transformers has no class for, is written in the
    layout of sentence-transformers.

    Args:
      model: with its head.
      variables: as `load_pretrained` returns them.
      folder: made anew; a folder of that name that holds a model before is replaced.
      processor: saved beside the weights (tokenizer, preprocessor_config.json).
      classes: names of the labels, for `id2label`.

    Raises:
      UserError: neither library has a class for the head.
      RunError: the folder cannot be written.
    """
    folder = Path(folder)
    family = get_family(model.family)
    entries = json.loads(model.source)
    chosen = _format(family, model.head)
    write = _writer(family, model, variables, entries, chosen, classes)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if processor is not None:
            processor.save(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _format(family: Family, head: Any) -> HeadFormat | None:
    """The reference's class for `head`, if there is one."""
    return next((f for f in family.heads.values() if head is not None and f.matches(head)), None)


def _writer(family, model, variables, entries, chosen, classes):
    """The function that fills a folder, after everything that can be refused was."""
    if chosen is not None or model.head is None:
        return lambda folder: write_model(folder, family, model, variables, entries, chosen, classes)
    if isinstance(model.head, (Classifier, Embedding)) and "input_ids" in family.inputs(model.config):
        bare = model._replace(head=None)

        def write(folder: Path) -> None:
            write_model(folder, family, bare, variables, entries, None, None)
            write_layout(folder, model.head, variables["params"].get("head", {}), model.config)

        return write
    raise UserError(
        f"The head {model.head} on a {family.name} cannot be exported: transformers' classes for it are "
        f"{', '.join(family.heads) or '(none)'}, which pool by {family.own_pool!r} and do not normalise. "
        "Train with config.task.pool='own' to export with the head, or save the backbone alone (head=None)."
    )


def write_model(
    folder: Path,
    family: Family,
    model: Model,
    variables: Mapping[str, Any],
    entries: Mapping[str, Any],
    chosen: HeadFormat | None,
    classes: Sequence[str] | None,
) -> None:
    """config.json and model.safetensors."""
    flat = flat_of(variables)
    extras = variables.get("extras", {})
    prefix = chosen.prefix if chosen else _prefix(family, model.config, extras)
    table = family.table(model.config, prefix)
    tensors = export_leaves(table, flat)
    entries = {"model_type": family.name, **entries}
    if chosen is not None:
        tensors.update(export_leaves(table._replace(rows=chosen.rows(model.config)), flat))
        entries.update(architectures=[chosen.architecture], **chosen.describe(model.head, classes))
    tensors.update(_kept(family, extras, tensors, prefix, foreign=chosen is None))
    (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")
    write_tensors(folder, tensors)


def _prefix(family: Family, config: Any, extras: Mapping[str, np.ndarray]) -> str:
    """The prefix of a model without a head of ours: a checkpoint whose own head we keep verbatim keeps its names."""
    modules = _modules(name for entry in family.table(config, "").rows for name in entry.theirs)
    foreign = any(_strip(family, name).rpartition(".")[0] not in modules for name in extras)
    return family.prefixes[0] if foreign else family.prefixes[-1]


def _kept(
    family: Family, extras: Mapping[str, np.ndarray], tensors: Mapping[str, Any], prefix: str, *, foreign: bool
) -> dict[str, np.ndarray]:
    """The extras to write: buffers of the model's own modules, and foreign heads that no head of ours replaces."""
    parents = _modules(tensors)
    kept = {}
    for name, tensor in extras.items():
        inner = f"{prefix}{_strip(family, name)}"
        if inner.rpartition(".")[0] in parents:
            kept[inner] = tensor
        elif foreign:
            kept[name] = tensor
    return kept


def _strip(family: Family, name: str) -> str:
    prefix = next((p for p in family.prefixes if p and name.startswith(p)), "")
    return name.removeprefix(prefix)


def _modules(names: Iterable[str]) -> set[str]:
    """The modules that hold the named tensors, and those that hold these modules."""
    parts = [name.split(".") for name in names]
    return {".".join(p[:depth]) for p in parts for depth in range(1, len(p))}


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """model.safetensors, or shards of at most `SHARD_BYTES` with an index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    metadata = {"format": "pt"}  # transformers refuses files without it
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata=metadata)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata=metadata)
        places.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
