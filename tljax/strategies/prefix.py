"""Learned keys and values before those of the tokens."""

from collections.abc import Sequence
from functools import partial

from tljax.base.errors import raise_faults
from tljax.base.types import Adapter, Plan
from tljax.models.prompts import places_leaves, prefix_leaves
from tljax.strategies.targets import adapter_plan, kernels, size_faults

DEFAULT = r"backbone/.*(attention|cross)/(key|value)/kernel"
POSITIONS = "backbone/embed/positions/embedding"
PARTNERS = {"key": "value", "value": "key"}


def prefix(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    length: int = 20,
    deviation: float = 0.02,
    places: bool = True,
    targets: str | Sequence[str] | None = None,
    source: str | None = None,
    batch_stats: str = "auto",
) -> Plan:
    """The backbone is frozen; keys and values that stand before those of the tokens train, and the wings.

    Li and Liang 2021 (prefix tuning), arXiv 2101.00190; of every attention of encoders too: Liu et al. 2022 (P-tuning
    v2), arXiv 2110.07602. The vectors are learned as they are, without the network that the first paper makes them
    with. They start at small random values, and even a key of 0 has a share of the attention: the first step is not
    that of the checkpoint. They go into no kernel, so such a model is exported as an adapter of PEFT only.

    Args:
      stages: in depth order.
      paths: of all leaves.
      length: how many keys and values, from 1.
      deviation: of the normal distribution from which they start.
      places: whether the positions of the tokens begin after those of the prefix, as in the paper and in PEFT, where a
        model has a table of positions (`embed/positions`). Rotary positions know distances only, and stay as they are.
      targets: expressions over paths of the kernels of keys and values; default: those of all attentions.
      source: a folder in PEFT's format, from which the values start; its length must be that said here.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range; targets that match nothing, or one kernel of a pair alone.
    """
    del stages
    faults = size_faults(length=length)
    if isinstance(deviation, bool) or not isinstance(deviation, (int, float)) or deviation < 0:
        faults.append(f"deviation is {deviation!r}; it must be a number from 0.")
    if not isinstance(places, bool):
        faults.append(f"places is {places!r}; it must be True or False.")
    chosen = kernels("prefix", paths, targets, DEFAULT)
    faults += _unpaired(chosen)
    raise_faults("The section config.strategy.prefix cannot be used:", faults[:6])
    beside = {
        "vectors": Adapter(
            name="prefix",
            leaves=("prefix/vectors",),
            init=partial(prefix_leaves, length=length, deviation=float(deviation)),
            source=source,
        ),
        "places": Adapter(
            name="prefix",
            leaves=("prefix/places",),
            init=partial(places_leaves, length=length),
            frozen=("prefix/places",),
            source=source,
        ),
    }
    tables = tuple(path for path in paths if places and path == POSITIONS)
    return adapter_plan(
        "prefix",
        paths,
        (*tables, *chosen),
        lambda path: beside["places" if path in tables else "vectors"],
        batch_stats=batch_stats,
    )


def _unpaired(chosen: Sequence[str]) -> list[str]:
    """What is wrong with these kernels: a prefix has keys and values."""
    faults = []
    for path in chosen:
        above, name, leaf = path.rsplit("/", 2)
        partner = f"{above}/{PARTNERS.get(name)}/{leaf}"
        if name not in PARTNERS:
            faults.append(f"targets name {path}; a prefix stands beside the kernels of keys and values.")
        elif partner not in chosen:
            faults.append(f"targets name {path} and not {partner}; a prefix has both.")
    return faults
