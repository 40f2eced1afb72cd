"""What may best be done with a checkpoint: rules from the scores of its depths to a strategy, each with its reason.

The rules are few and asked in order; the first that holds decides. Their thresholds are set by hand, after a handful of
data sets (docs/selection.md), and not fitted.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

STRATEGIES = ("linear_probe", "last_stages", "adapters", "fine_tune")
"""What can be advised, from what moves least to what moves most."""
FEW, MANY = 20, 50
"""Labelled examples of the smallest class: below the first there are too few to move a backbone by, from the second on
there are enough to move all of it."""
SOLVED = 0.98
"""Accuracy of frozen features from which on there is little left to gain."""
TELLING = 2.0
"""Standard errors from which on a difference is taken for one."""
NEAR = 1.0
"""A proxy A-distance below which source and target count as alike: a linear classifier errs in a quarter of its guesses
or more."""


class Evidence(NamedTuple):
    """What is known of one checkpoint on the task's training examples.

    Attributes:
      per_class: labelled examples of the smallest class.
      right: depth → (N,), whether a linear classifier on the features there was right on examples that it was not
        fitted to; from the bottom up, the last one is what the head reads.
      neighbour: the same of the nearest neighbour.
      raw: (N,), the same of the better of both on the inputs themselves; None where there is none.
      alignment: depth → CKA of the features and the classes, from 0 to 1.
      distance: proxy A-distance between the source's data and the task's at the top, from 0 to 2; None where the
        source's data are not there.
      adaptable: whether the model has attentions for adapters to stand in.
    """

    per_class: int
    right: Mapping[str, np.ndarray]
    neighbour: Mapping[str, np.ndarray]
    raw: np.ndarray | None = None
    alignment: Mapping[str, float] = {}
    distance: float | None = None
    adaptable: bool = False

    @property
    def top(self) -> str:
        """The depth that the head reads."""
        return list(self.right)[-1]

    @property
    def best(self) -> str:
        """The depth with the best accuracy; of equal ones the highest."""
        return max(reversed(list(self.right)), key=lambda depth: self.right[depth].mean())

    @property
    def frozen(self) -> np.ndarray:
        """(N,): the best that either classifier does on frozen features of any depth."""
        return max((*self.right.values(), *self.neighbour.values()), key=np.mean)

    def accuracy(self, depth: str) -> float:
        """Of the linear classifier there."""
        return float(self.right[depth].mean())


class Advice(NamedTuple):
    """What is advised.

    Attributes:
      strategy: of `STRATEGIES`.
      depth: where the features are best: what is above it may have to move.
      rule: the name of the rule that decided.
      reasons: sentences, that of the rule first.
    """

    strategy: str
    depth: str
    rule: str
    reasons: tuple[str, ...]


class Rule(NamedTuple):
    """`name`; `holds` says whether it decides, for `strategy`, and `reason` says why in a sentence."""

    name: str
    strategy: str
    holds: Callable[[Evidence], bool]
    reason: Callable[[Evidence], str]


def gap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(how much more often the first was right, its standard error) of two classifiers on the same N examples."""
    difference = first.astype(np.float64) - second
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))


def ahead(first: np.ndarray, second: np.ndarray, errors: float = TELLING) -> bool:
    """Whether the first was right more often, by more than so many standard errors of the difference."""
    mean, error = gap(first, second)
    return mean > errors * error


def advise(evidence: Evidence) -> Advice:
    """The advice of the first of `RULES` that holds. The last one always does."""
    rule = next(rule for rule in RULES if rule.holds(evidence))
    return Advice(rule.strategy, evidence.best, rule.name, (rule.reason(evidence), *_remarks(evidence, rule)))


def _raw_wins(evidence: Evidence) -> bool:
    return evidence.raw is not None and ahead(evidence.raw, evidence.frozen, errors=1.0)


def _why_raw(evidence: Evidence) -> str:
    return (
        f"Simple classifiers have {percent(evidence.raw.mean())} on the raw inputs, and at best "
        f"{percent(evidence.frozen.mean())} on frozen features: what the task needs is lost in them, so they must move."
    )


def _why_upper(evidence: Evidence) -> str:
    return (
        f"The features after {evidence.best} have {percent(evidence.accuracy(evidence.best))}, those at the top "
        f"{percent(evidence.accuracy(evidence.top))}: the stages above are the source's own, so let these learn anew."
    )


def _why_neighbours(evidence: Evidence) -> str:
    return (
        f"The nearest neighbour has {percent(evidence.neighbour[evidence.top].mean())}, a linear classifier "
        f"{percent(evidence.accuracy(evidence.top))}: the classes are there, but no plane parts them, so the features "
        "must move."
    )


def _labels(evidence: Evidence) -> str:
    return f"{evidence.per_class} labelled examples of the smallest class"


RULES = (
    Rule("raw inputs win", "fine_tune", _raw_wins, _why_raw),
    Rule(
        "solved",
        "linear_probe",
        lambda e: e.accuracy(e.top) >= SOLVED,
        lambda e: f"Frozen features have {percent(e.accuracy(e.top))} already: little is left to gain.",
    ),
    Rule(
        "many labels",
        "fine_tune",
        lambda e: e.per_class >= MANY,
        lambda e: f"{_labels(e)} are enough to move everything by.",
    ),
    Rule(
        "upper stages lose",
        "last_stages",
        lambda e: ahead(e.right[e.best], e.right[e.top]),
        _why_upper,
    ),
    Rule(
        "few labels",
        "linear_probe",
        lambda e: e.per_class < FEW,
        lambda e: f"{_labels(e)} are too few to move a backbone by.",
    ),
    Rule(
        "neighbours win",
        "fine_tune",
        lambda e: ahead(e.neighbour[e.top], e.right[e.top]),
        _why_neighbours,
    ),
    Rule(
        "near source",
        "linear_probe",
        lambda e: e.distance is not None and e.distance < NEAR,
        lambda e: (
            f"The source's data and these are hard to tell apart (proxy A-distance {e.distance:.2f} of 2): the "
            "features are made for such data."
        ),
    ),
    Rule(
        "some labels, attentions",
        "adapters",
        lambda e: e.adaptable,
        lambda e: f"{_labels(e)} are enough to move a small part by: adapters.",
    ),
    Rule(
        "some labels",
        "last_stages",
        lambda e: True,
        lambda e: f"{_labels(e)} are enough to move a part by: the last stages.",
    ),
)


def _remarks(evidence: Evidence, rule: Rule) -> list[str]:
    """What should be known beside the reason of the rule."""
    found = []
    if rule.name == "raw inputs win" and evidence.per_class < FEW:
        found.append(
            f"But {_labels(evidence)} may be too few for it: a simple classifier on the raw inputs is the one to beat."
        )
    elif evidence.raw is None:
        found.append("There is no classifier on raw inputs of this kind to compare the features with.")
    elif rule.name != "raw inputs win":
        lead, error = gap(evidence.frozen, evidence.raw)
        sure = "" if lead > TELLING * error else ", which chance explains"
        found.append(f"Frozen features are {100 * lead:.1f} ± {100 * error:.1f} points ahead of the raw inputs{sure}.")
    shift = alignment_shift(evidence)
    if shift is not None and shift > 0.02:
        found.append(
            f"The features agree with the classes most after {_peak(evidence)}; above it the CKA falls by {shift:.2f}."
        )
    if evidence.distance is not None and rule.name != "near source":
        found.append(f"The proxy A-distance between the source's data and these is {evidence.distance:.2f} of 2.")
    return found


def _peak(evidence: Evidence) -> str:
    return max(evidence.alignment, key=evidence.alignment.__getitem__)


def alignment_shift(evidence: Evidence) -> float | None:
    """How far the CKA of features and classes falls from the depth where it is highest to the top; None without any.

    The linear CKA (Kornblith et al. 2019) of features with one-hot classes is the centred alignment of their kernel
    with the ideal one (Cristianini et al. 2001; Cortes, Mohri and Rostamizadeh 2012): the part of the features'
    similarities that is that of the classes. Above 0 the upper stages undo what served this task.
    """
    if not evidence.alignment:
        return None
    return evidence.alignment[_peak(evidence)] - evidence.alignment[evidence.top]


def percent(share: float) -> str:
    """A share in per cent, in words."""
    return f"{100 * share:.1f} %"
