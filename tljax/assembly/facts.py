"""What a run trains from, on and with, in digests: by them a checkpoint knows its run again."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tljax.assembly.experiment import Experiment
from tljax.base.paths import flatten
from tljax.base.types import Source
from tljax.checkpoints.digest import joined, leaf_digests, tree_digest
from tljax.data.digest import record_bytes
from tljax.train.continuing import Facts

LOOKED_AT = 32
"""Examples of an entry whose content is looked at, evenly spaced: reading all of a large data set would take hours."""


def digests(experiment: Experiment, pretrained: Mapping[str, str] | None = None) -> dict[str, str]:
    """Digests of the pretrained tree (live leaves as they start) and of the live set.

    Args:
      experiment: the run.
      pretrained: `Facts.pretrained`, where it is known already.
    """
    flat, plan, named = flatten(experiment.variables["params"]), experiment.plan, {}
    for start in (0, *plan.changes):
        since = f" from step {start}" if start else ""
        for path in sorted(plan.live(start) - named.keys()):
            named[path] = np.frombuffer(f"{path}{flat[path].shape}{since}".encode(), np.uint8)
    return {"pretrained": joined(pretrained or _pretrained(experiment)), "live": tree_digest(named)}


def facts_of(experiment: Experiment) -> Facts:
    """What a checkpoint says of the run, and a restore compares."""
    mesh = experiment.mesh
    place = {"axes": dict(mesh.shape), "platform": mesh.devices.flat[0].platform, "processes": jax.process_count()}
    data = {name: _data(source) for name, source in experiment.sources.items()}
    return Facts(pretrained=_pretrained(experiment), data=data, mesh=place)


def _pretrained(experiment: Experiment) -> dict[str, str]:
    variables = experiment.variables
    return leaf_digests({**flatten(variables["params"]), **flatten(variables["batch_stats"])})


def _data(source: Source) -> dict[str, Any]:
    """The number of examples, and digests of the classes' names and of some examples with their labels."""
    count = len(source.records)
    positions = sorted({*np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int).tolist()})
    seen = hashlib.blake2b(digest_size=8)
    for position in positions:
        seen.update(record_bytes(source.records[position]))
    classes = None if source.classes is None else hashlib.blake2b(repr(source.classes).encode(), digest_size=8)
    return {"examples": count, "classes": classes and classes.hexdigest(), "content": seen.hexdigest()}
