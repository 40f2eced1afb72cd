"""Small networks between the layers, or beside them."""

from collections.abc import Sequence
from functools import partial

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Adapter, Plan
from tljax.models.adapters import bottleneck_leaves, parallel_leaves
from tljax.strategies.targets import adapter_plan, kernels, size_faults

AFTER = {
    "both": r"backbone/.*((attention|cross)/output|mlp/down)/kernel",
    "mlp": r"backbone/.*mlp/down/kernel",
}
LEAVES = tuple(f"{layer}/{leaf}" for layer in ("down", "up") for leaf in ("kernel", "bias"))


def bottleneck(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    width: int = 64,
    after: str = "both",
    parallel: bool = False,
    scale: float = 4.0,
    targets: str | Sequence[str] | None = None,
    batch_stats: str = "auto",
) -> Plan:
    """The backbone is frozen; after sublayers, before their residual, y + up(relu(down(y))) trains, and the wings.

    Houlsby et al. 2019, arXiv 1902.00751 (after attention and MLP); Pfeiffer et al. 2021 (AdapterFusion), arXiv
    2005.00247 (after the MLP alone). The norms stay frozen here. `up` starts at zero, so that the first step is that of
    the checkpoint. These adapters go into no kernel: such a model cannot be exported. Parallel ones stand beside each
    MLP: y + scale · up(relu(down(x))), of what goes into it. He et al. 2022, arXiv 2110.04366.

    Args:
      stages: in depth order.
      paths: of all leaves.
      width: of the inner layer, from 1.
      after: "both" or "mlp".
      parallel: beside the MLPs, and not after sublayers; `after` is then not read.
      scale: of parallel ones; the paper's is 4.
      targets: expressions over paths or module names of the kernels whose outputs it follows, in place of `after`; of
        parallel ones the last kernels of MLPs, called down.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range; targets that match nothing.
    """
    del stages
    faults = [] if after in AFTER else [f"after is {after!r}. {suggest(after, AFTER)}"]
    faults += size_faults(width=width)
    if not isinstance(parallel, bool):
        faults.append(f"parallel is {parallel!r}; it must be True or False.")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0:
        faults.append(f"scale is {scale!r}; it must be a number above 0.")
    raise_faults("The section config.strategy.bottleneck cannot be used:", faults)
    if parallel:
        leaves = tuple(f"parallel/{leaf}" for leaf in (*LEAVES, "scale"))
        init = partial(parallel_leaves, width=width, scale=float(scale))
        adapter = Adapter("parallel", leaves, init, frozen=("parallel/scale",))
    else:
        leaves = tuple(f"bottleneck/{leaf}" for leaf in LEAVES)
        adapter = Adapter("bottleneck", leaves, partial(bottleneck_leaves, width=width))
    chosen = kernels("bottleneck", paths, targets, AFTER["mlp" if parallel else after])
    return adapter_plan("bottleneck", paths, chosen, lambda path: adapter, batch_stats=batch_stats)
