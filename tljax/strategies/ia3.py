"""Factors on activations."""

from collections.abc import Sequence
from functools import partial

from tljax.base.errors import raise_faults
from tljax.base.types import Adapter, Plan
from tljax.models.adapters import ia3_leaves
from tljax.strategies.targets import adapter_plan, kernels

OUTPUTS = r"backbone/.*(attention|cross)/(key|value)/kernel"
INPUTS = r"backbone/.*mlp/down/kernel"


def ia3(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    targets: str | Sequence[str] | None = None,
    inputs: str | Sequence[str] | None = None,
    source: str | None = None,
    batch_stats: str = "auto",
) -> Plan:
    """Kernels are frozen; a factor for each channel of some activations trains, and the wings `head` and `method`.

    Liu et al. 2022 (IA³, "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning"),
    arXiv 2205.05638. The factors start at 1. Export merges them into kernels and biases.

    Args:
      stages: in depth order.
      paths: of all leaves.
      targets: expressions over paths or module names of kernels whose outputs are scaled (their bias too); default:
        keys and values of all attentions, if there are any. `()` for none.
      inputs: likewise, of kernels whose inputs are scaled; default: the second layer of each MLP, if there are any.
      source: a folder in PEFT's format, from which the factors start; its kernels must be those said here.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: expressions that match nothing; the inputs of an embedding, which are no activations.
    """
    del stages
    sides: dict[str, tuple[str, ...]] = {}
    for side, chosen in (
        ("input", kernels("ia3", paths, inputs, INPUTS, option="inputs", required=False)),
        ("output", kernels("ia3", paths, targets, OUTPUTS, required=inputs is None)),
    ):
        for path in chosen:
            sides[path] = (*sides.get(path, ()), side)
    raise_faults(
        "config.strategy.ia3.inputs cannot be used:",
        [
            f"{path} is a table, and what goes in are numbers of rows. Use targets."
            for path, mine in sides.items()
            if "input" in mine and path.endswith("/embedding")
        ],
    )

    def adapter(path: str) -> Adapter:
        mine = sides[path]
        leaves = tuple(f"ia3/{side}" for side in mine)
        return Adapter("ia3", leaves, partial(ia3_leaves, sides=mine), source=source)

    return adapter_plan("ia3", paths, tuple(sides), adapter, batch_stats=batch_stats)
