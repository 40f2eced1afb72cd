"""Low-rank adapters."""

import math
from collections.abc import Sequence
from functools import partial

from tljax.base.errors import raise_faults
from tljax.base.types import Adapter, Plan
from tljax.models.adapters import embedding_lora_leaves, lora_leaves
from tljax.strategies.targets import adapter_plan, kernels, size_faults

DEFAULT = r"backbone/.*(attention|cross)/(query|value)/kernel"


def lora(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
    rslora: bool = False,
    dora: bool = False,
    b_rate: float = 1.0,
    dropout: float = 0.0,
    source: str | None = None,
    batch_stats: str = "auto",
) -> Plan:
    """Kernels are frozen, and scale · a · b of rank R is added to them; a and b train, and the wings `head`, `method`.

    Hu et al. 2022 (LoRA), arXiv 2106.09685. Dense layers, convolutions without groups (a has the kernel's height and
    width, b is 1×1), embeddings. a is uniform and b zero (the other way round, and normal, for embeddings), so that the
    first step is that of the checkpoint. Export merges them into the kernels.

    Args:
      stages: in depth order.
      paths: of all leaves.
      rank: R, from 1.
      alpha: the scale is alpha / R.
      targets: expressions over paths or module names of kernels; default: queries and values of all attentions.
      rslora: the scale is alpha / √R, which keeps the size of the update at high ranks. Kalajdzievski 2023, 2312.03732.
      dora: the columns' norms train apart from their directions. Liu et al. 2024, arXiv 2402.09353.
      b_rate: factor on the learning rate of b; 16 is their advice. Hayou, Ghosh and Yu 2024 (LoRA+), arXiv 2402.12354.
      dropout: the share of the numbers going into a · b that a training step sets to 0, scaling the rest up; the base's
        own dropout stays. Tables of vectors have none: what goes into them are numbers of rows.
      source: a folder in PEFT's format, from which a and b start; its kernels, rank and scale must be those said here.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range; targets that match nothing.
    """
    del stages
    number = {"alpha": alpha, "b_rate": b_rate}
    faults = [
        f"{name} is {value!r}; it must be a number above 0."
        for name, value in number.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0
    ]
    share = isinstance(dropout, (int, float)) and not isinstance(dropout, bool) and 0 <= dropout < 1
    faults += [] if share else [f"dropout is {dropout!r}; it is a share, from 0 up to, but not including, 1."]
    faults += size_faults(rank=rank)
    raise_faults("The section config.strategy.lora cannot be used:", faults)
    options = {"rank": rank, "scale": alpha / (math.sqrt(rank) if rslora else rank), "dora": dora}
    names = ("lora/a", "lora/b", "lora/scale", *(("lora/magnitude",) if dora else ()))

    def adapter(path: str) -> Adapter:
        table = path.endswith("/embedding")
        drops = bool(dropout) and not table
        leaves = embedding_lora_leaves if table else partial(lora_leaves, dropout=dropout)
        return Adapter(
            name="lora",
            leaves=(*names, "lora/dropout") if drops else names,
            init=partial(leaves, **options),
            frozen=("lora/scale", "lora/dropout") if drops else ("lora/scale",),
            rates={} if b_rate == 1 else {"lora/b": float(b_rate)},
            source=source,
        )

    return adapter_plan("lora", paths, kernels("lora", paths, targets, DEFAULT), adapter, batch_stats=batch_stats)
