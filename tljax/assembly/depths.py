"""What each depth of a checkpoint makes of a data set: one vector an example and a depth, computed once and stored."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tljax.assembly.domains import stage_features
from tljax.assembly.experiment import Experiment
from tljax.assembly.running import batches_of, placed
from tljax.assembly.storing import content_of, store_facts, store_name
from tljax.base.types import Model, Source
from tljax.data.prepare import cache_dir
from tljax.features.store import Field, write
from tljax.models.forward import forward, recorded_stages
from tljax.sharding import batch_sharding
from tljax.train.evaluate import collect

OWN = "own"
"""The key of the probabilities of the checkpoint's own classifier, beside those of the depths."""


class Pretrained(NamedTuple):
    """A checkpoint as it was loaded: its model has its own head, and `variables` that head's leaves."""

    model: Model
    variables: dict[str, Any]


class Depths(NamedTuple):
    """What a checkpoint makes of N examples.

    Attributes:
      features: depth → (N, D), float32, from the bottom up: after each stage the mean over its tokens or pixels; the
        last one is the vector that the head reads.
      own: (N, Z), the probabilities of the checkpoint's own classifier; None where it has none.
    """

    features: dict[str, np.ndarray]
    own: np.ndarray | None


def read_depths(experiment: Experiment, pretrained: Pretrained, source: Source, processor: Any, *, most: int) -> Depths:
    """The features of `source` at `most` depths or fewer, from the store where they are there.

    The store is one of the stage cache's (TLJAX_CACHE), and what decides what is in it is its name; so each checkpoint
    reads the same examples once, whatever is scored on them.

    Args:
      experiment: of the checkpoint; its task says what the head reads.
      pretrained: the checkpoint with its own head.
      source: prepared.
      processor: of the source.
      most: depths, from 1; the top one is always there.

    Raises:
      RunError: the disk is full.
    """
    model, names, run = _reader(experiment, pretrained, source, processor, most)
    content, _, _ = content_of(source)
    facts = {
        **store_facts(experiment, experiment.stages, processor, content),
        "depths": names,
        "task": experiment.config.get("task"),
        "own": repr(model.head),
    }
    shapes = jax.eval_shape(run, *placed_own(experiment, pretrained), _first_batch(experiment, source, processor))
    fields = {key: Field(tuple(x.shape[1:]), "float32", "float32") for key, x in shapes.items()}
    examples = _examples(experiment, pretrained, source, processor, run)
    store = write(cache_dir() / "features" / store_name(facts), fields, len(source.records), examples)
    rows = [store[i] for i in range(len(store))]
    found = {key: np.stack([row[key] for row in rows]) for key in fields}
    return Depths({name: found[f"depth{i}"] for i, name in enumerate(names)}, found.get(OWN))


def spread_out(names: Sequence[str], most: int) -> tuple[str, ...]:
    """At most `most` of `names`, evenly spaced, the last one among them."""
    places = np.linspace(0, len(names) - 1, most) if most > 1 else [len(names) - 1]
    return tuple(names[i] for i in sorted({round(place) for place in places}))


def placed_own(experiment: Experiment, pretrained: Pretrained) -> tuple[dict, Any]:
    """(params in the compute dtype, running statistics) of the checkpoint with its own head, on the mesh."""
    return placed(experiment._replace(variables=pretrained.variables))


def _reader(
    experiment: Experiment, pretrained: Pretrained, source: Source, processor: Any, most: int
) -> tuple[Model, tuple[str, ...], Any]:
    """(the model that runs, the depths from the bottom up, jitted (params, batch_stats, batch) → key → (B, …))."""
    task, stages = experiment.task, recorded_stages(pretrained.model)
    model = pretrained.model if _classifies(pretrained.model) else experiment.model._replace(head=None)

    def all_depths(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, _ = forward(model, variables, task.inputs(batch), hidden_states=True)
        found = {name: x.astype(jnp.float32) for name, x in stage_features(outputs, stages).items()}
        logits = outputs.get("logits")
        own = None if logits is None or logits.ndim != 2 else jax.nn.softmax(logits.astype(jnp.float32))
        return found, task.feature(outputs).astype(jnp.float32), own

    batch = _first_batch(experiment, source, processor)
    there, _, _ = jax.eval_shape(all_depths, *placed_own(experiment, pretrained), batch)
    ordered = [stage for stage in stages if stage in there] + sorted(set(there) - set(stages))
    names = spread_out(ordered, most)

    @jax.jit
    def run(params, batch_stats, batch):
        found, feature, own = all_depths(params, batch_stats, batch)
        chosen = {f"depth{i}": found[name] for i, name in enumerate(names[:-1])}
        chosen[f"depth{len(names) - 1}"] = feature
        return chosen if own is None else {**chosen, OWN: own}

    return model, names, run


def _classifies(model: Model) -> bool:
    """Whether the checkpoint's own head tells one of several classes."""
    return getattr(model.head, "classes", 0) > 1


def _first_batch(experiment: Experiment, source: Source, processor: Any) -> dict[str, Any]:
    return next(iter(batches_of(experiment, source, processor)))


def _examples(
    experiment: Experiment, pretrained: Pretrained, source: Source, processor: Any, run: Any
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """(position, 1, arrays) of every example. Nothing runs before the first one is asked for."""
    reader = partial(run, *placed_own(experiment, pretrained))
    found, _, _ = collect(reader, batches_of(experiment, source, processor), batch_sharding(experiment.mesh))
    for position in range(len(source.records)):
        yield position, 1, {key: rows[position] for key, rows in found.items()}
