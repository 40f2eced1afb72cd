"""`save_pretrained`: a model and its variables as the folder that the reference library loads back."""

import dataclasses
import functools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from tljax.base.errors import RunError, UserError
from tljax.base.tables import lookup
from tljax.base.types import Family, HeadFormat, Model
from tljax.checkpoints import FORMATS, WRITTEN_IN
from tljax.checkpoints.convert import export_leaves, flat_of
from tljax.checkpoints.keras_format import write_model as write_keras
from tljax.checkpoints.sentence_transformers import check_layout, write_layout
from tljax.models import get_family
from tljax.models.adapters import merged
from tljax.models.heads import Classifier, Embedding, Several

SHARD_BYTES = 5_000_000_000

OURS = re.compile(
    r"config\.json|(model|pytorch_model).*\.(safetensors|bin|npz|json|h5)|modules\.json|sentence_bert_config\.json"
    r"|model\.(cfg|weights)|config_sentence_transformers\.json|\d+_\w+"
)
"""Files of a folder that describe a model: an export takes their place, so that none speaks of the model before."""


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
    layout of sentence-transformers. Adapters are merged into their kernels.

    Args:
      model: with its head.
      variables: as `load_pretrained` returns them.
      folder: made anew, or a folder that holds a model, whose files are replaced; other files in it stay.
      processor: saved beside the weights (tokenizer, preprocessor_config.json).
      classes: names of the labels, for `id2label`.

    Raises:
      UserError: neither library has a class for the head; adapters that cannot be merged; `folder` holds something
        else than a model.
      RunError: the folder cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not _may_replace(folder):
        raise UserError(f"{folder} exists and holds no model (no config.json). Name another one, or remove it.")
    family, variables = get_family(model.family), merged(variables)
    chosen = format_of(model)
    write = _writer(family, model, variables, chosen, classes, processor)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if processor is not None:
            processor.save(temporary)
        _replace(folder, temporary)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _may_replace(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` in the place of `folder`; what in it is of no model moves over."""
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_name(f"{new.name}.old")
    folder.rename(old)
    new.rename(folder)
    for entry in old.iterdir():
        if not OURS.fullmatch(entry.name) and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old)


def _spelling(model: Model) -> str:
    """The naming of the weights that the checkpoint came in, a key of the family's `spellings`; "" for its first."""
    return json.loads(model.source).get("weights_format", "")


def format_of(model: Model) -> HeadFormat | None:
    """The reference's class for the head, if there is one in the model's spelling."""
    head, spelling = model.head, _spelling(model)
    formats = (f for f in get_family(model.family).heads.values() if f.spelling == spelling)
    return next((f for f in formats if head is not None and f.matches(head)), None)


def _writer(family, model, variables, chosen, classes, processor):
    """The function that fills a folder, after everything that can be refused was."""
    if family.name in WRITTEN_IN:
        return lookup(FORMATS, WRITTEN_IN[family.name], what="checkpoint format").writer(model, variables, classes)
    if chosen is not None:
        written = {path for entry in chosen.rows(model.config) for path in entry.ours}
        left = [path for path in flat_of(variables) if path.startswith("head/") and path not in written]
        if left:
            raise UserError(
                f"The head {model.head} cannot be exported as {chosen.architecture}, which has no place for "
                f"{', '.join(left)} with this config (tied output embeddings have no leaf of their own)."
            )
    if chosen is not None or model.head is None:
        return lambda folder: write_model(folder, family, model, variables, chosen, classes)
    if isinstance(model.head, (Classifier, Embedding)) and "input_ids" in family.inputs(model.config):
        check_layout(model.head)
        longest = getattr(processor, "max_length", None) or getattr(model.config, "max_position_embeddings", 512)

        def write(folder: Path) -> None:
            write_model(folder, family, model, variables, None, classes)
            head = variables["params"].get("head", {})
            write_layout(folder, model.head, head, width=model.config.hidden_size, max_length=longest)

        return write
    if isinstance(model.head, Several):
        names = ", ".join(name for name, _ in model.head.heads)
        raise UserError(
            f"The model has the heads {names}, and the reference's classes have one each. Save the model with one of "
            "them (export --head=NAME; tljax.tasks.several.with_one_head), or the backbone alone (head=None)."
        )
    cure = "Save the backbone alone (head=None)."
    if hasattr(model.head, "pool"):
        cure = (
            f"They pool by {family.own_pool!r} and do not normalise: train with config.task.pool='own', or save the "
            "backbone alone (head=None)."
        )
    raise UserError(
        f"The head {model.head} on a {family.name} cannot be exported: the reference's classes for it are "
        f"{', '.join(family.heads) or '(none)'}. {cure}"
    )


def write_model(
    folder: Path,
    family: Family,
    model: Model,
    variables: Mapping[str, Any],
    chosen: HeadFormat | None,
    classes: Sequence[str] | None,
) -> None:
    """config.json and model.safetensors, with the head if the class `chosen` writes it.

    A model whose weights came in another spelling than the family's first is written in that spelling and its format.
    """
    flat, spelling = flat_of(variables), _spelling(model)
    extras = variables.get("extras", {}) if model.head is None else _without_heads(family, model, variables)
    prefix = chosen.prefix if chosen else _prefix(family, model.config, extras)
    table = (family.spellings[spelling] if spelling else family.table)(model.config, prefix)
    tensors = export_leaves(table, flat)
    if chosen is not None:
        tensors = {n: x for n, x in tensors.items() if not any(re.fullmatch(p, n) for p in chosen.lacks)}
        tensors.update(export_leaves(table._replace(rows=chosen.rows(model.config)), flat))
    if spelling:
        entries = _entries(family, model, chosen, classes, foreign=False)
        write_keras(folder, {**tensors, **extras}, entries)
        (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")
        return
    if "model_type" not in json.loads(model.source):
        # No checkpoint gave torch's counters of batches, which the reference's batch norms have.
        norms = [name.removesuffix(".running_mean") for name in tensors if name.endswith(".running_mean")]
        tensors.update({f"{norm}.num_batches_tracked": np.zeros((), np.int64) for norm in norms})
    foreign = prefix != family.prefixes[-1] and chosen is None
    tensors.update(_kept(family, extras, tensors, prefix))
    entries = _entries(family, model, chosen, classes, foreign=foreign)
    entries.update(_stored_dtype(entries, tensors))
    (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")
    write_tensors(folder, tensors)


def _entries(
    family: Family, model: Model, chosen: HeadFormat | None, classes: Sequence[str] | None, *, foreign: bool
) -> dict[str, Any]:
    """config.json: the source's, or that of our config where there was none, with what head and class are."""
    entries = json.loads(model.source)
    if "model_type" not in entries:
        entries = {"model_type": family.name, **dataclasses.asdict(model.config), **entries}
    # The reference tells by the class, not by an entry, whether there is a pooler.
    entries.pop("add_pooling_layer", None)
    if chosen is not None:
        entries["architectures"] = [chosen.architecture]
    elif not foreign:
        entries["architectures"] = [re.split("For|LMHead|Model", next(iter(family.heads), family.name))[0] + "Model"]
    describe = chosen.describe if chosen else next((f.describe for f in family.heads.values()), None)
    count = getattr(model.head, "classes", None)
    if describe is not None and count is not None:
        names = entries.get("id2label") or {}
        known = [names[str(i)] for i in range(count)] if set(names) == {str(i) for i in range(count)} else None
        entries.update(describe(model.head, classes or known))
    return entries


def _stored_dtype(entries: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The entry that tells transformers in what dtype to load: the widest stored one, for trained leaves widen."""
    stated = "dtype" if "dtype" in entries else "torch_dtype"
    kinds = {x.dtype for x in tensors.values() if jnp.issubdtype(x.dtype, jnp.floating)}
    if not kinds or (len(kinds) == 1 and stated not in entries):
        return {}
    widest = functools.reduce(jnp.promote_types, kinds)
    return {stated if stated in entries else "dtype": str(widest)}


def _without_heads(family: Family, model: Model, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The extras that are buffers of the backbone's own modules: a head of ours takes the place of others."""
    modules = _modules(name for entry in family.table(model.config, "").rows for name in entry.theirs)
    extras = variables.get("extras", {})
    return {name: x for name, x in extras.items() if _strip(family, name).rpartition(".")[0] in modules}


def _prefix(family: Family, config: Any, extras: Mapping[str, np.ndarray]) -> str:
    """The prefix of a model without a head of ours: a checkpoint whose own head we keep verbatim keeps its names."""
    modules = _modules(name for entry in family.table(config, "").rows for name in entry.theirs)
    foreign = any(_strip(family, name).rpartition(".")[0] not in modules for name in extras)
    return family.prefixes[0] if foreign else family.prefixes[-1]


def _kept(
    family: Family, extras: Mapping[str, np.ndarray], tensors: Mapping[str, Any], prefix: str
) -> dict[str, np.ndarray]:
    """The extras under the names to write: buffers of the backbone have its prefix, heads have none."""
    parents = _modules(tensors)
    inner = {name: f"{prefix}{_strip(family, name)}" for name in extras}
    return {inner[name] if inner[name].rpartition(".")[0] in parents else name: x for name, x in extras.items()}


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
