"""The schemas of the sections that have no table of plug-ins: `data`, `model`, `select`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.errors import raise_faults
from tljax.base.tables import suggest
from tljax.transferability import NEEDS
from tljax.transferability.advice import STRATEGIES


class Entry(NamedTuple):
    """One entry of `config.data`: a split of a source, what is taken of it, and how it is read.

    Attributes:
      source: "tljax:trec", "tfds:imdb_reviews", "csv:reviews.csv", "image_folder:photos" …
      split: the source's own split.
      columns: {"text": …, "text_b": …, "label": …} for sources with named columns.
      classes: keep these classes only.
      shots_per_class: keep that many examples of each class.
      hold_out: fraction (or number) of examples held out, stratified by class; the entry with the same `hold_out`
        and take="held_out" is its complement.
      take: "rest" or "held_out".
      skip: leave out that many examples of what is taken (a second part of the held-out ones).
      limit: keep that many examples.
      seed: of the choices above; None is config.seed.
      processor: options laid over the checkpoint's own processor (`max_length`, `size`, `pair` …).
      augment: random changes of training images (`flip`, `crop` …).
      versions: how many times each example is so changed; they come in turn, one an epoch. None draws all anew. What
        frozen stages make of so many can be stored (`config.train.cache`).
      views: name → such changes, for methods that compare random views of an example (`weak` and `strong` …). Only
        those that the method names are made, and where it names some, `augment` is not read.
      task: which of the tasks of config.task (name='several') it belongs to.
      batch_size: of a stream that a method reads; None is config.train.batch_size, or the stream's share of it where
        the method mixes its streams.
      class_weights: "balanced" weighs classes by n / (classes · count).
      episodes: of a stream that a method reads: dict(ways=…, shots=…, queries=…). Its batches are then episodes of
        few-shot learning, and batch_size a multiple of ways · (shots + queries).
      group_by_length: examples of similar length come in one batch, which saves padding of texts and sounds.
      workers: processes that prepare batches; 0 prepares them in threads.
    """

    source: str
    split: str = "train"
    columns: Mapping[str, str] | None = None
    classes: tuple[str, ...] | None = None
    shots_per_class: int | None = None
    hold_out: float | None = None
    take: str = "rest"
    skip: int = 0
    limit: int | None = None
    seed: int | None = None
    processor: Mapping[str, Any] | None = None
    augment: Mapping[str, Any] | None = None
    versions: int | None = None
    views: Mapping[str, Mapping[str, Any]] | None = None
    task: str | None = None
    batch_size: int | None = None
    class_weights: str | None = None
    episodes: Mapping[str, int] | None = None
    group_by_length: bool = False
    workers: int = 0

    def check(self, name: str) -> "Entry":
        """Self, the entry `name`; raises `UserError` for wrong kinds of values, and versions of what stays."""
        faults, number = [], self.versions
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            faults.append(f"versions is {number!r}; it must be a whole number from 1.")
        if number is not None and not self.augment:
            faults.append("versions are those of `augment`, which is not given.")
        if not isinstance(self.group_by_length, bool):
            faults.append(f"group_by_length is {self.group_by_length!r}; it must be True or False.")
        raise_faults(f"The entry config.data.{name} cannot be used:", faults)
        return self


class ModelSection(NamedTuple):
    """The section `model` of a config.

    Attributes:
      source: what `load_pretrained` takes; None builds `family` from `variant` with random weights.
      family: for checkpoints that do not say it themselves.
      variant: published name or config.json entries, for a model without a checkpoint; and for `inspect --topology`,
        which then reads nothing of the source.
      dtype: of the loaded leaves; None keeps the stored ones.
      sha256: expected digest of the weight file.
      adapters: folders in PEFT's format, put into the kernels: one, or several, ("a", ("b", 0.5)); see
        `tljax.checkpoints.merging`.
      adapt: {change of shape: new value}, see `tljax.adapt`.
      processor: options of the processor, for checkpoints that carry none.
    """

    source: str | None = None
    family: str | None = None
    variant: Any = None
    dtype: str | None = None
    sha256: str | None = None
    adapters: Any = ()
    adapt: Mapping[str, Any] = {}
    processor: Mapping[str, Any] = {}


class Select(NamedTuple):
    """The section `select` of a config: what the verb `select` compares, and by what.

    Attributes:
      checkpoints: name → sections laid over the config: `model` in place of the config's own, of the others single
        values (`task`, `optim` …). None are the config's own model alone; `--checkpoints` names some, or others.
      depths: of each checkpoint that are scored, at most, evenly spaced; the top one always is.
      examples: of an entry that are scored, at most, stratified by class.
      scores: of `tljax.transferability` that read features; `logme` breaks ties where it is one of them.
      source: an entry as those of `data`: what the checkpoints learnt from, for the distance to the task's data. Its
        labels are not read. A checkpoint may have its own: `checkpoints.NAME.select.source`.
      strategies: name of an advice → sections laid over the config when it is verified.
      finalists: checkpoints that are verified, of the first ones.
      eta: of the runs of a rung the best 1 / eta go on, with eta times the steps.
    """

    checkpoints: Mapping[str, Mapping[str, Any]] = {}
    depths: int = 6
    examples: int = 2000
    scores: Sequence[str] = ("logme", "regularized_h_score", "gbc")
    source: Mapping[str, Any] | None = None
    strategies: Mapping[str, Mapping[str, Any]] = {}
    finalists: int = 2
    eta: int = 3

    def check(self) -> "Select":
        """Self; raises `UserError` for numbers out of range, and names that do not exist."""
        faults = [
            f"{name} is {value!r}; it must be a whole number from {least}."
            for name, least in (("depths", 1), ("examples", 10), ("finalists", 1), ("eta", 2))
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < least
        ]
        featured = [name for name, what in NEEDS.items() if what == "features"]
        faults += [f"scores: {name!r}. {suggest(name, featured)}" for name in self.scores if name not in featured]
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        faults += [f"strategies: {name!r}. {suggest(name, STRATEGIES)}" for name in unknown]
        raise_faults("The section config.select cannot be used:", faults)
        return self
