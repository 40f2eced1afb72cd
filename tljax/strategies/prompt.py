"""Learned vectors before those of a text."""

import re
from collections.abc import Sequence
from functools import partial

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.base.types import Adapter, Plan
from tljax.models.prompts import prompt_leaves
from tljax.strategies.targets import adapter_plan, size_faults

WORDS = r"backbone/(encoder/)?embed/words/embedding"
STARTS = ("vocabulary", "random")


def prompt(
    stages: Sequence[str],
    paths: Sequence[str],
    *,
    length: int = 20,
    start: str = "vocabulary",
    source: str | None = None,
    batch_stats: str = "auto",
) -> Plan:
    """The backbone is frozen; vectors that stand before those of the words train, and the wings `head` and `method`.

    Lester, Al-Rfou and Constant 2021 (prompt tuning), arXiv 2104.08691. Heads and losses see the places of the text
    alone; only a pooler that reads the first place (BERT's) reads the first of the prompt, as in PEFT. The first step
    is not that of the checkpoint. The vectors go into no kernel: such a model is exported as an adapter of PEFT only.

    Args:
      stages: in depth order.
      paths: of all leaves.
      length: how many vectors, from 1. They take positions of the text.
      start: "vocabulary": the vectors of words drawn at random, which the paper finds better; "random": normal, with
        the deviation of the table.
      source: a folder in PEFT's format, from which the values start; its length must be that said here.
      batch_stats: "auto" lets the running statistics of stages with adapters move, "frozen" none, "train" all.

    Raises:
      UserError: options out of range; a model without words.
    """
    del stages
    faults = [] if start in STARTS else [f"start is {start!r}. {suggest(str(start), STARTS)}"]
    faults += size_faults(length=length)
    raise_faults("The section config.strategy.prompt cannot be used:", faults)
    chosen = [path for path in paths if re.fullmatch(WORDS, path)]
    if not chosen:
        raise UserError(
            "config.strategy.prompt: this model has no table of words (embed/words), before whose vectors a prompt "
            "stands. For images use visual_prompt."
        )
    init = partial(prompt_leaves, length=length, start=start)
    adapter = Adapter("prompt", ("prompt/vectors",), init, source=source)
    return adapter_plan("prompt", paths, chosen, lambda path: adapter, batch_stats=batch_stats)
