"""What a task is told about the data and the checkpoint, and the choices that all tasks share."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tljax.base.errors import UserError
from tljax.base.tables import suggest


class TaskSpec(NamedTuple):
    """What a task may know.

    Attributes:
      classes: the names of the data's classes, or None.
      own_pool: the pooling that the checkpoint's own classifier uses: "pooled", "cls" or "mean".
      pools: the poolings that the backbone's outputs allow.
      head: the checkpoint's own head module, or None.
      dropout: the rate before the dense layer in the reference's classifier.
      family: the name of the backbone's family.
      config: the family's frozen config.
      outputs: the shapes of the backbone's outputs for a batch of one.
      processor: the checkpoint's own (a tokenizer …), or None.
      parts: task → what it may know of its own data, where the entries of config.data name tasks.
    """

    classes: tuple[str, ...] | None
    own_pool: str
    pools: tuple[str, ...]
    head: Any = None
    dropout: float = 0.0
    family: str = ""
    config: Any = None
    outputs: Mapping[str, Any] = {}
    processor: Any = None
    parts: Mapping[str, "TaskSpec"] = {}


def choose(name: str, value: str, accepted: tuple[str, ...]) -> str:
    """`value`, if it is one of `accepted`; else a `UserError` that names the option."""
    if value not in accepted:
        raise UserError(f"config.task.{name} is {value!r}. {suggest(value, accepted)}")
    return value


def choose_pool(spec: TaskSpec, value: str) -> str:
    """The pooling that `value` means: "own" is the checkpoint's."""
    value = choose("pool", value, ("own", *spec.pools))
    return spec.own_pool if value == "own" else value


def choose_dropout(spec: TaskSpec, value: float | None) -> float:
    """The dropout rate that `value` means: None is the checkpoint's."""
    value = spec.dropout if value is None else value
    if not 0 <= value < 1:
        raise UserError(f"config.task.dropout is {value!r}; it must be from 0 up to, but not including, 1.")
    return value


def output_of(pool: str) -> str:
    """The backbone output that a head with this pooling reads."""
    return "pooled" if pool == "pooled" else "hidden"


def scores(values: Any) -> list[dict[str, float]]:
    """A `score` for each line of the predictions."""
    return [{"score": round(float(value), 6)} for value in values]
