"""Learned tokens besides those of an image."""

import re
from collections.abc import Sequence
from functools import partial

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Adapter, Plan
from tljax.models.prompts import visual_prompt_leaves
from tljax.strategies.targets import adapter_plan, size_faults

SHALLOW = r"backbone/block0/attention/query/kernel"
DEEP = r"backbone/block\d+/attention/query/kernel"


def visual_prompt(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    length: int = 10,
    deep: bool = False,
    batch_stats: str = "auto",
) -> Plan:
    """The backbone is frozen; tokens that stand beside those of the image train, and the wings `head` and `method`.

    Jia et al. 2022 (VPT), arXiv 2203.12119; for ViT and DeiT. Without positions it is the same where among the tokens
    they stand. What comes out of them belongs to no outputs. The first step is not that of the checkpoint, and such a
    model cannot be exported.

    Args:
      stages: in depth order.
      paths: of all leaves.
      length: how many tokens, from 1.
      deep: every block has its own, in the place of those that come out of the block below; otherwise they go into
        the first block and on from there.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range; a model without blocks of attention.
    """
    del stages
    faults = [] if isinstance(deep, bool) else [f"deep is {deep!r}; it must be True or False."]
    faults += size_faults(length=length)
    raise_faults("The section config.strategy.visual_prompt cannot be used:", faults)
    chosen = [path for path in paths if re.fullmatch(DEEP if deep else SHALLOW, path)]
    if not chosen:
        raise UserError("config.strategy.visual_prompt: this model is no ViT or DeiT, and no other can have them.")
    adapter = Adapter("visual_prompt", ("visual_prompt/vectors",), partial(visual_prompt_leaves, length=length))
    return adapter_plan("visual_prompt", paths, chosen, lambda path: adapter, batch_stats=batch_stats)
