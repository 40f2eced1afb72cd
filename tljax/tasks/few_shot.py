"""Few-shot classification: episodes of new classes, told from a few examples of each by what the features say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call
from tljax.base.types import Source, Task
from tljax.data.episodes import EVALUATION, ROLES, Episodes, Sampler
from tljax.data.records import read_many
from tljax.models.heads import Embedding, vector
from tljax.tasks.spec import TaskSpec, choose, choose_pool, output_of

DISTANCES = ("euclidean", "cosine")
FIELDS = ("episode", "role")
"""What a record of an episode says beside its label."""


class Drawn(NamedTuple):
    """The episodes of an evaluation on data without episodes of their own.

    Attributes:
      ways, shots, queries: see `tljax.data.episodes.Episodes`.
      count: episodes; the literature's number is the default.
      seed: of the episodes, the same ones at every evaluation.
    """

    ways: int
    shots: int
    queries: int
    count: int = 600
    seed: int = 0


def few_shot(
    spec: TaskSpec,
    *,
    pool: str = "own",
    normalize: bool = False,
    classifier: str = "prototypes",
    distance: str = "euclidean",
    regularization: float = 1.0,
    episodes: Mapping[str, int] | None = None,
) -> Task:
    """Classification of queries among the classes of their episode, by a few labelled examples (the support) of each.

    There is no trained head: the features are evaluated as they are, or trained by the method `prototypes` or `ridge`.
    Records say in `episode` to which one they belong and in `role` whether they are "support" or "query"; their labels
    are compared within an episode only. For data that do not, episodes are drawn from the labels. Each record runs
    through the network once, in however many episodes it is.

    Args:
      spec: see `TaskSpec`; classes are not needed.
      pool: one of `spec.pools`, or "own".
      normalize: scale the features to length 1.
      classifier: "prototypes", the nearest mean of a class's support (Snell et al. 2017, arXiv 1703.05175); or
        "ridge", regression on the support's one-hot classes (Bertinetto et al. 2019, arXiv 1805.08136).
      distance: of prototypes: "euclidean" or "cosine".
      regularization: λ of "ridge", in the square of the features' unit.
      episodes: dict(ways=…, shots=…, queries=…, count=600, seed=0) for data without episodes of their own.

    Returns:
      A `Task` whose prediction is `embedding` (B, D). Metrics: `accuracy` and `error`, means over the episodes;
      `interval`, half the width of their 95 % confidence interval (Student's t over the episodes; absent for a single
      one); `episodes`, their number. It is chosen by `accuracy`.

    Raises:
      UserError: unknown options, numbers out of range; data with neither episodes nor, with `episodes`, labels;
        when evaluated, episodes without support or queries, and queries of classes without support.
    """
    pool = choose_pool(spec, pool)
    choose("distance", distance, DISTANCES)
    drawn = None if episodes is None else call(Drawn, (), episodes, where="config.task.episodes")
    _check(drawn, regularization)
    by = {"prototypes": partial(_nearest, how=distance), "ridge": partial(_ridge, regularization=regularization)}
    scores = by[choose("classifier", classifier, tuple(by))]

    def measure(predictions, targets, records):
        features = np.asarray(predictions["embedding"], np.float64)
        parts = read_episodes(records) if drawn is None or _has_episodes(records) else draw(targets, drawn)
        found = np.array([_accuracy(scores, features, np.asarray(targets), *part) for part in parts.values()])
        return {"accuracy": float(found.mean()), "error": float(1 - found.mean()), **_interval(found)}

    def refuse(*_):
        raise UserError(
            "The task few_shot has no loss of its own. Set config.method.name to 'prototypes' or 'ridge', or to a "
            "method that needs no labels."
        )

    return Task(
        name="few_shot",
        head=Embedding(pool, normalize),
        uses=output_of(pool),
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=refuse,
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {"embedding": outputs["embedding"].astype(jnp.float32)},
        metrics=measure,
        decode=lambda predictions, records: decode(predictions, records, scores),
        main=("accuracy", "max"),
        prepare=partial(_checked, drawn=drawn),
        question=partial(_checked, drawn=None, labels=False),
        feature=partial(vector, how=pool if pool in spec.pools else "mean", normalized=normalize),
    )


def _check(drawn: Drawn | None, regularization: float) -> None:
    faults = [f"regularization is {regularization!r}; it must be above 0."] * (not regularization > 0)
    if drawn is not None:
        faults += [f"episodes.{fault}" for fault in Episodes(*drawn[:3]).faults()]
        faults += [f"episodes.count is {drawn.count!r}; it must be a whole number from 1."] * (
            not isinstance(drawn.count, int) or drawn.count < 1
        )
    raise_faults("The section config.task cannot be used:", faults)


def _has_episodes(records: Sequence[Any]) -> bool:
    return len(records) > 0 and set(FIELDS) <= set(records[0])


def _checked(source: Source, processor: Any, *, drawn: Drawn | None, labels: bool = True) -> tuple[Source, Any]:
    """`source` and `processor` as they are, where there are episodes or labels to draw them from."""
    if len(source.records) and not _has_episodes(source.records) and drawn is None:
        raise UserError(
            f"The task few_shot needs episodes, and the records of {source.name} have no {' and no '.join(FIELDS)}. "
            "Name such columns, or say how episodes are drawn from the labels: "
            "config.task.episodes=dict(ways=…, shots=…, queries=…)."
        )
    if labels and len(source.records) and source.records[0].get("label") is None:
        raise UserError(f"The task few_shot needs labels, and the records of {source.name} have none.")
    return source, processor


def read_episodes(records: Sequence[Any]) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Episode → (positions of its support, of its queries), in the order of the records."""
    parts: dict[Any, tuple[list[int], list[int]]] = {}
    faults = []
    for i, record in enumerate(read_many(records, range(len(records)))):
        episode, role = (record.get(field) for field in FIELDS)
        if episode is None or role not in ROLES:
            faults.append(f"{record.get('id')!r} has the episode {episode!r} and the role {role!r}.")
            continue
        parts.setdefault(episode, ([], []))[ROLES.index(role)].append(i)
    faults = faults[:10] + [f"{len(faults) - 10} records more."] * (len(faults) > 10)
    for episode, part in parts.items():
        faults += [f"episode {episode!r} has no {role}." for role, rows in zip(ROLES, part, strict=True) if not rows]
    raise_faults(f"Each record needs an episode and a role, {' or '.join(map(repr, ROLES))}:", faults)
    return {episode: tuple(np.array(rows, np.int64) for rows in part) for episode, part in parts.items()}


def draw(labels: np.ndarray | None, drawn: Drawn) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Number → (positions of the support, of the queries) of episodes drawn from `labels`; see `Sampler`."""
    shape = Episodes(*drawn[:3])
    sampler = Sampler(labels, shape, name="the evaluation", seed=drawn.seed, purpose=EVALUATION)
    found = {}
    for number in range(drawn.count):
        positions = sampler(number).reshape(shape.ways, -1)
        found[number] = (positions[:, : shape.shots].ravel(), positions[:, shape.shots :].ravel())
    return found


def _accuracy(
    scores: Callable[..., np.ndarray], features: np.ndarray, labels: np.ndarray, support: np.ndarray, query: np.ndarray
) -> float:
    """The share of an episode's queries that get their own class."""
    classes, numbers = np.unique(labels[support], return_inverse=True)
    strange = sorted(set(labels[query].tolist()) - set(classes.tolist()))
    if strange:
        raise UserError(
            f"An episode has queries of the classes {strange} and no support of them; its support has "
            f"{classes.tolist()}."
        )
    found = scores(features[support], numbers, len(classes), features[query])
    return float(np.mean(classes[found.argmax(axis=1)] == labels[query]))


def _nearest(support: np.ndarray, numbers: np.ndarray, ways: int, query: np.ndarray, *, how: str) -> np.ndarray:
    """The closeness of each query to the mean of each class, (queries, ways)."""
    means = np.stack([support[numbers == way].mean(axis=0) for way in range(ways)])
    if how == "cosine":
        unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)  # noqa: E731
        return unit(query) @ unit(means).T
    return -np.square(query[:, None] - means).sum(axis=-1)


def _ridge(
    support: np.ndarray, numbers: np.ndarray, ways: int, query: np.ndarray, *, regularization: float
) -> np.ndarray:
    """What the ridge regression of the support on its one-hot classes says of each query, (queries, ways)."""
    gram = support @ support.T + regularization * np.eye(len(support))
    return query @ support.T @ np.linalg.solve(gram, np.eye(ways)[numbers])


def _interval(values: np.ndarray) -> dict[str, float]:
    """{"interval", "episodes"}: half the 95 % confidence interval of the mean of `values`, and their number."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return {"episodes": float(count)}
    half = t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return {"interval": float(half), "episodes": float(count)}


def decode(
    predictions: Mapping[str, Any], records: Sequence[Any], scores: Callable[..., np.ndarray]
) -> list[dict[str, Any]]:
    """A line a record: `episode`, `role`; of a query also `nearest`, the id of the nearest example of the support, and
    `label`, its class, where the support has labels.
    """
    features = np.asarray(predictions["embedding"], np.float64)
    rows = read_many(records, range(len(records)))
    lines = [{field: row.get(field) for field in FIELDS} for row in rows]
    for support, query in read_episodes(records).values():
        distances = np.square(features[query][:, None] - features[support]).sum(axis=-1)
        for i, place in zip(query, support[distances.argmin(axis=1)], strict=True):
            lines[i]["nearest"] = rows[place].get("id")
        labels = [rows[i].get("label") for i in support]
        if None not in labels:
            classes, numbers = np.unique(labels, return_inverse=True)
            found = scores(features[support], numbers, len(classes), features[query]).argmax(axis=1)
            for i, label in zip(query, classes[found].tolist(), strict=True):
                lines[i]["label"] = label
    return lines
