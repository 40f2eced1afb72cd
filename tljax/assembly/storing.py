"""What a store of features is known by: everything that decides what is in it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax

from tljax.assembly.experiment import Experiment
from tljax.assembly.running import evaluation_size
from tljax.base.paths import flatten
from tljax.base.types import Source
from tljax.checkpoints.digest import tree_digest
from tljax.data.digest import record_bytes

VERSIONS = ("tljax", "jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
"""The packages whose version may change what is stored."""


def content_of(source: Source) -> tuple[str, list[Any], list[Any]]:
    """(digest of all records without their labels, labels, ids)."""
    digest, labels, ids = hashlib.blake2b(digest_size=16), [], []
    for i in range(len(source.records)):
        record = source.records[i]
        labels.append(record.get("label"))
        ids.append(record.get("id"))
        digest.update(record_bytes(record, without=("label", "id")))
    return digest.hexdigest(), labels, ids


def store_facts(experiment: Experiment, stages: Sequence[str], processor: Any, content: str) -> dict[str, Any]:
    """What decides what `stages` make of data.

    Args:
      experiment: its leaves, in the stages that run.
      stages: whose work is stored.
      processor: of the data.
      content: digest of the data.
    """
    below = tuple(f"backbone/{stage}/" for stage in stages)
    trees = (
        flatten(experiment.variables[kind]) for kind in ("params", "batch_stats") if experiment.variables.get(kind)
    )
    leaves = {path: leaf for tree in trees for path, leaf in tree.items() if path.startswith(below)}
    return {
        "content": content,
        "leaves": tree_digest(leaves),
        "family": experiment.model.family,
        "config": repr(experiment.model.config),
        "processor": [type(processor).__name__, processor.facts],
        "compute_dtype": experiment.settings.compute_dtype,
        # Of a batch's size and padding depend the last bits of what is computed.
        "batch": evaluation_size(experiment),
        "platform": jax.devices()[0].device_kind,
        "packages": {package: version(package) for package in VERSIONS},
    }


def store_name(facts: Mapping[str, Any]) -> str:
    """The name of the folder of a store, from all that decides what is in it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:24]
