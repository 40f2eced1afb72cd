"""Episodes of few-shot learning: of some classes some examples to learn from (shots) and others to classify (queries).

Vinyals et al. 2016, arXiv 1606.04080. W ways, S shots and Q queries of each; an episode has W · (S + Q) examples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source
from tljax.data.subsets import labels_of

ROLES = ("support", "query")
"""What the field `role` of a record of an episode may say: learnt from, or classified."""
DRAW, EVALUATION = range(2)
"""What episodes are drawn for: those of a training and those of an evaluation with the same seed are different ones."""


class Episodes(NamedTuple):
    """The shape of an episode.

    Attributes:
      ways: W, classes, from 2.
      shots: S, examples of each to learn from.
      queries: Q, examples of each to classify.
    """

    ways: int
    shots: int
    queries: int

    @property
    def size(self) -> int:
        """Examples of an episode."""
        return self.ways * (self.shots + self.queries)

    def faults(self) -> list[str]:
        """What is wrong with the numbers, a sentence each."""
        return [
            f"{name} is {value!r}; it must be a whole number from {least}."
            for name, value, least in (("ways", self.ways, 2), ("shots", self.shots, 1), ("queries", self.queries, 1))
            if not isinstance(value, int) or isinstance(value, bool) or value < least
        ]


class Sampler:
    """Number of an episode → the positions of its records, (W · (S + Q),): class by class, its shots, then its queries.

    The classes of an episode are drawn evenly and without replacement, and so are the examples of each. An episode is
    a function of seed, number and purpose alone, the same on all platforms and numpy versions.
    """

    def __init__(
        self,
        labels: np.ndarray | None,
        shape: Episodes,
        *,
        name: str,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        purpose: int = DRAW,
    ):
        """Sorts the records by class.

        Args:
          labels: (records,), integers; None or others are refused.
          shape: of an episode.
          name: of the data, for messages.
          classes: their names. Classes without records are none here.
          seed: of all episodes.
          purpose: `DRAW` or `EVALUATION`.

        Raises:
          UserError: numbers out of range, records without one class each, too few classes, a class with too few
            records; all in one message.
        """
        raise_faults(f"The episodes of {name} cannot be drawn:", shape.faults())
        if labels is None or labels.dtype.kind not in "iu" or labels.ndim != 1:
            found = "none" if labels is None else "other labels"
            raise UserError(f"{name}: episodes need one class a record, and these records have {found}.")
        present = np.unique(labels)
        self._members = [np.flatnonzero(labels == label) for label in present]
        each, faults = shape.shots + shape.queries, []
        if len(present) < shape.ways:
            faults.append(f"there are {len(present)} classes, and ways is {shape.ways}.")
        faults += [
            f"{classes[label] if classes else f'class {label}'} has {len(members)} examples, and shots + queries is "
            f"{each}. Leave it out with `classes`, or lower one of the two."
            for label, members in zip(present, self._members, strict=True)
            if len(members) < each
        ]
        raise_faults(f"The episodes of {name} cannot be drawn:", faults)
        self.shape, self._seed, self._purpose = shape, seed, purpose

    def __call__(self, number: int) -> np.ndarray:
        # The raw bits of PCG64 are what no numpy version may change.
        generator = np.random.PCG64(np.random.SeedSequence([self._seed, self._purpose, number]))

        def first(count: int, of: int) -> np.ndarray:
            return np.argsort(generator.random_raw(of), kind="stable")[:count]

        ways, each = self.shape.ways, self.shape.shots + self.shape.queries
        drawn = [self._members[way] for way in first(ways, len(self._members))]
        return np.concatenate([members[first(each, len(members))] for members in drawn])


class EpisodeBatches:
    """Number of a step → [(place in the stream, position of a record)] of this shard's part of its batch.

    A batch of E · W · (S + Q) examples holds the episodes from step · E on, one after another; this shard has the
    `rows` of it.
    """

    def __init__(self, source: Source, shape: Episodes, *, batch_size: int, seed: int, rows: Sequence[int]):
        self._sampler = Sampler(labels_of(source), shape, name=source.name, classes=source.classes, seed=seed)
        self._batch_size, self._rows = batch_size, rows

    def __call__(self, step: int) -> list[tuple[int, int]]:
        count = self._batch_size // self._sampler.shape.size
        positions = np.concatenate([self._sampler(step * count + i) for i in range(count)])
        return [(step * self._batch_size + row, int(positions[row])) for row in self._rows]
