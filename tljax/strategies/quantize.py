"""Frozen kernels in 8 or 4 bits."""

from collections.abc import Sequence

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Plan, Quantization
from tljax.models.quantized import KINDS, NF4
from tljax.strategies.targets import kernels

DEFAULT = r"backbone/(.*/)?block\d+/.*/kernel"


def quantize(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    kind: str = "nf4",
    targets: str | Sequence[str] | None = None,
    double: bool = False,
) -> Plan:
    """Kernels of dense layers that never train are held in 8 or 4 bits; who trains is said by the others.

    Dettmers et al. 2023, arXiv 2305.14314; with `lora` it is their QLoRA. The layer makes its kernel of the bits each
    time that it runs. Export writes these kernels, with LoRA in them: the model that was trained.

    Args:
      stages: in depth order.
      paths: of all leaves.
      kind: "int8", with a scale for each output, or "nf4": 16 values, with a scale for 64 inputs of each output.
      targets: expressions over paths or module names of kernels; default: those of dense layers in the blocks that no
        other strategy trains. A kernel that is named and trains is refused.
      double: of nf4: its scales are held in 8 bits too.

    Raises:
      UserError: options out of range; targets that match nothing, or tables.
    """
    del stages
    chosen = kernels("quantize", paths, targets, DEFAULT)
    faults = [] if kind in KINDS else [f"kind is {kind!r}. {suggest(kind, KINDS)}"]
    if not isinstance(double, bool) or (double and kind != NF4):
        faults.append(f"double is {double!r}; it must be True or False, and only nf4 has scales in blocks.")
    faults += [f"{path} is a table, and not the kernel of a dense layer." for path in chosen if "/embedding" in path]
    if not chosen:
        faults.append("it names no kernel, so it has nothing to do. Drop it.")
    raise_faults("The section config.strategy.quantize cannot be used:", faults)
    every, how = frozenset(paths), Quantization(kind, double, named=targets is not None)
    return Plan(live=lambda step: every, quantized=dict.fromkeys(chosen, how))
