"""The section `train` of a config: how long, how often, and on what number of examples."""

import math
from typing import NamedTuple

from tljax.base.errors import UserError
from tljax.base.tables import suggest

COMPUTE_DTYPES = ("float32", "bfloat16")
REMAT = ("none", "stages")
NONFINITE = ("stop", "skip")

EVALUATIONS = 50
"""Of a run, at most, by default: ten labelled images make an epoch of one step, and each would write a checkpoint."""


class Settings(NamedTuple):
    """How a run is trained.

    Attributes:
      batch_size: examples a step, over all devices and all accumulated parts.
      steps: optimizer steps in all; where it is given, it counts and not `epochs`.
      epochs: passes over the training data, may be a fraction; rounded up to whole steps.
      eval_batch_size: examples a step of an evaluation; None is `batch_size`.
      eval_every: steps between evaluations on `data.validation`; None is once an epoch, and where that were more
        than `EVALUATIONS` in the run, once in as many epochs as it takes.
      save_every: steps between checkpoints; None is with every evaluation.
      log_every: steps between training records.
      accumulate: parts that a batch is cut into; their gradients are added before one update.
      compute_dtype: "float32" or "bfloat16"; the live leaves have float32 masters either way.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints of steps that are multiples of it are kept for good; None keeps none of them.
      keep_best: checkpoints kept of those that were the best on validation when they were saved, the newest of them.
      nonfinite: a step whose loss or gradient is not finite: "stop" stops the run and records its batch; "skip" leaves
        everything as it was before the step, counts it, and goes on.
      patience: evaluations without improvement before the run stops; None never stops early.
      metric: the validation metric that chooses the best checkpoint; None is the task's own. Of losses, errors and
        perplexities less is better.
      cache: what the stages below the lowest live one make of the data is stored and read again: "off"; "auto", where
        that is possible, saves work and is no larger than `cache_limit`; or a folder, where it must be possible.
      cache_dtype: "float32", or "bfloat16", which is half as large and rounds.
      cache_limit: bytes, of all entries of the config together; for "auto".
      remat: "stages": between the forward and the backward pass only what goes into each stage is kept in memory, and
        the rest of it is computed again (Chen et al. 2016, arXiv 1604.06174); "none" keeps everything.
      scan: equal neighbouring stages run as one `lax.scan`, so that a deep model compiles in less time for a TPU.
      wandb: a project of Weights & Biases in which the run can be watched too; None is none.
    """

    batch_size: int = 32
    steps: int | None = None
    epochs: float | None = None
    eval_batch_size: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    log_every: int = 10
    accumulate: int = 1
    compute_dtype: str = "float32"
    keep_last: int = 2
    keep_every: int | None = None
    keep_best: int = 1
    nonfinite: str = "stop"
    patience: int | None = None
    metric: str | None = None
    cache: str = "off"
    cache_dtype: str = "float32"
    cache_limit: float = 16e9
    remat: str = "none"
    scan: bool = False
    wandb: str | None = None

    def check(self) -> "Settings":
        """Self, after checking that the values fit together."""
        named = {"compute_dtype": COMPUTE_DTYPES, "cache_dtype": COMPUTE_DTYPES, "remat": REMAT, "nonfinite": NONFINITE}
        for name, accepted in named.items():
            value = getattr(self, name)
            if value not in accepted:
                raise UserError(f"config.train.{name} is {value!r}. {suggest(value, accepted)}")
        if self.wandb is not None and (not isinstance(self.wandb, str) or not self.wandb):
            raise UserError(f"config.train.wandb is {self.wandb!r}; it must be the name of a project, or None.")
        if not isinstance(self.scan, bool):
            raise UserError(f"config.train.scan is {self.scan!r}; it must be True or False.")
        if not isinstance(self.cache, str) or self.cache.lower() in ("", "on", "yes", "true"):
            raise UserError(f"config.train.cache is {self.cache!r}; it must be 'auto', 'off', or the name of a folder.")
        numbers = ("batch_size", "log_every", "accumulate", "keep_last", "keep_best")
        for name in (*numbers, *(("keep_every",) if self.keep_every is not None else ())):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(
                    f"config.train.{name} is {getattr(self, name)!r}; it must be a whole number, at least 1."
                )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"config.train.batch_size ({self.batch_size}) is not divisible by accumulate ({self.accumulate})."
            )
        return self

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run, for a training set of that many examples."""
        if self.steps is not None:
            return int(self.steps)
        return math.ceil((1 if self.epochs is None else self.epochs) * examples / self.batch_size)

    def evaluation_interval(self, examples: int) -> int:
        """Steps between two evaluations, and between two checkpoints."""
        epoch = max(1, math.ceil(examples / self.batch_size))
        return self.eval_every or epoch * max(1, math.ceil(self.total_steps(examples) / epoch / EVALUATIONS))
