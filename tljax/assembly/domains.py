"""What became of two domains in a run: how far apart their features are before and after, and what to be wary of."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import domains
from tljax.assembly.experiment import Experiment
from tljax.assembly.phases import masters
from tljax.assembly.running import batches_of
from tljax.base.processes import place
from tljax.data.subsets import subset
from tljax.models.forward import forward, recorded_stages
from tljax.models.heads import pool
from tljax.sharding import batch_sharding
from tljax.train.evaluate import collect
from tljax.train.state import State, merge

EXAMPLES = 512
"""Of each data entry, at most: the figures take seconds."""
MOST, TIMES, NEARLY_ALL = 0.5, 3, 0.9
"""A collapse is a share of the target in one predicted class above MOST and above TIMES the largest share in the
source, or above NEARLY_ALL."""
LEAST_SPREAD = 0.01
LEAST_RANK = 1.5
"""Of the target's features; two classes may well lie on one line, more may not."""


def examiner(experiment: Experiment, frozen: Mapping[str, Any]) -> Callable[[State], dict[str, Any]] | None:
    """State → the record of kind "domains", for methods with two domains; None for others.

    The record compares the model as it was before the first step ("start") with that of the state ("end"), on at most
    512 examples of each data entry, in inference mode:

    - `distances`: the proxy A-distance and MMD² of the vectors that the head reads, between the two domains;
    - `features`: the effective rank and the spread of these vectors, by domain;
    - `cka`: the linear CKA between start and end after each stage, of features averaged over tokens or pixels;
    - `predicted`: the class that most examples of a domain get, and their share, where the task tells classes;
    - `learnt`: the accuracy on examples of the first domain, whose labels the method reads; None where there is none;
    - `entries`: the accuracy on the entries that no stream reads, where the head was trained before the run;
    - `warnings`: sentences, see `warnings_of`.

    Args:
      experiment: its method's `domains` name two data entries.
      frozen: flat dict of frozen leaves, as the step is given them.
    """
    pair = experiment.method.domains
    if not pair:
        return None
    labelled = [] if experiment.fresh_head else [n for n in experiment.sources if n not in experiment.method.streams]

    def examine(state: State) -> dict[str, Any]:
        began = time.monotonic()
        names = [*pair, *labelled]
        found: dict[str, dict[str, Any]] = {name: {} for name in names}
        run = _reader(experiment)
        for when, now in (("start", _first(experiment, state)), ("end", state)):
            params = merge(now.evaluated, frozen, jnp.dtype(experiment.settings.compute_dtype))
            read = partial(run, {"params": params, "batch_stats": now.batch_stats})
            for name in names:
                found[name][when] = _read(experiment, name, read)
        order = recorded_stages(experiment.model)
        record = record_of(found, pair, labelled, experiment.classes or (), order)
        return {**record, "warnings": warnings_of(record), "seconds": round(time.monotonic() - began, 3)}

    return examine


def _first(experiment: Experiment, state: State) -> State:
    """`state` with the live leaves and statistics of before the first step, placed as they are now."""
    like = lambda old, now: place(jnp.asarray(old, now.dtype), now.sharding)  # noqa: E731
    stats = jax.tree.map(like, experiment.variables["batch_stats"], state.batch_stats)
    return state._replace(live=masters(experiment, state.live), batch_stats=stats, average={})


def _reader(experiment: Experiment) -> Callable[[Any, Any], dict[str, Any]]:
    """(variables, batch) → `feature` (B, D), `stages` (name → (B, D)) and, for classes, `label` (B,)."""
    model, task = experiment.model, experiment.task
    stages = recorded_stages(model)

    @jax.jit
    def read(variables, batch):
        outputs, _ = forward(model, variables, task.inputs(batch), hidden_states=True)
        label = task.predict(outputs).get("label") if task.main[0] == "accuracy" else None
        features = {"feature": task.feature(outputs), "stages": stage_features(outputs, stages)}
        features = jax.tree.map(lambda x: x.astype(jnp.float32), features)
        return features if label is None else {**features, "label": label}

    return read


def stage_features(outputs: Mapping[str, Any], stages: tuple[str, ...]) -> dict[str, jax.Array]:
    """The hidden state after each stage as one vector an example, (B, D): the mean over its tokens or pixels.

    Args:
      outputs: with `hidden_states`, or with `encoder_hidden_states` and the like.
      stages: those that report a hidden state.
    """
    found = {}
    for key in (key for key in outputs if key.endswith("hidden_states")):
        wing = key.removesuffix("hidden_states").removesuffix("_")
        names = [stage for stage in stages if stage.rpartition("/")[0] == wing]
        states = outputs[key]
        if len(names) != len(states):
            names = [f"{wing}/{i:03}" if wing else f"{i:03}" for i in range(len(states))]
        for name, hidden in zip(names, states, strict=True):
            mask = outputs.get("mask")
            if mask is None or mask.shape != hidden.shape[:2]:
                mask = jnp.ones(hidden.shape[:2])
            found[name] = pool({"hidden": hidden, "mask": mask}, "mean") if hidden.ndim > 2 else hidden
    return found


def _read(experiment: Experiment, name: str, read: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """What `read` finds in some examples of the entry `name`; the same ones each time."""
    source = subset(experiment.sources[name], limit=EXAMPLES, seed=experiment.seed)
    batches = batches_of(experiment, source, experiment.processors[name])
    found, targets, _ = collect(read, batches, batch_sharding(experiment.mesh))
    single = targets is not None and not isinstance(targets, Mapping) and targets.ndim == 1
    if single and "label" in found and np.issubdtype(targets.dtype, np.integer):
        return {**found, "right": found["label"] == targets}
    return found


def record_of(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    pair: tuple[str, str],
    labelled: list[str],
    classes: tuple[str, ...],
    order: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The figures of `examiner`.

    Args:
      found: entry → "start" or "end" → what was read of it.
      pair: the two domains.
      labelled: the entries whose accuracy is compared.
      classes: names.
      order: names of stages in depth order.
    """
    one, two = (found[name] for name in pair)
    times = ("start", "end")
    # A compiled function gives out a dict in the order of its keys.
    stages = [stage for stage in order if stage in one["start"]["stages"]]
    stages += sorted(set(one["start"]["stages"]) - set(stages))
    record: dict[str, Any] = {
        "domains": list(pair),
        "examples": [len(x["start"]["feature"]) for x in (one, two)],
        "classes": len(classes),
        "distances": {when: _distances(one[when]["feature"], two[when]["feature"]) for when in times},
        "features": {
            name: {
                when: {"effective_rank": domains.effective_rank(x), "spread": domains.spread(x)}
                for when, x in ((when, found[name][when]["feature"]) for when in times)
            }
            for name in pair
        },
        "cka": {
            "stages": stages,
            **{
                name: [_known(domains.linear_cka(*(found[name][when]["stages"][s] for when in times))) for s in stages]
                for name in pair
            },
        },
        "predicted": {
            name: {when: _most(found[name][when]["label"], classes) for when in times}
            for name in pair
            if "label" in found[name]["end"]
        },
        "learnt": float(one["end"]["right"].mean()) if "right" in one["end"] else None,
        "entries": {},
    }
    for name in labelled:
        if "right" in found[name]["end"]:
            right = {when: found[name][when]["right"].astype(float) for when in times}
            change = right["end"] - right["start"]
            record["entries"][name] = {
                **{when: right[when].mean() for when in times},
                "standard_error": change.std() / math.sqrt(len(change)),
                "examples": len(change),
            }
    return record


def _distances(source: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
    folds = min(domains.FOLDS, len(source), len(target))
    if folds < 2:
        return {"proxy_a_distance": None, "mmd2": None}
    distance = domains.proxy_a_distance(source, target, folds=folds)
    return {"proxy_a_distance": distance, "mmd2": domains.median_mmd(source, target)}


def _most(labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = np.bincount(labels)
    most = int(counts.argmax())
    return {"class": classes[most] if classes else str(most), "share": counts[most] / len(labels)}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """What to be wary of: sentences.

    Not learnt: most examples of the source, whose labels are known, are predicted wrongly. Negative transfer: an
    accuracy that fell in the run by more than two standard errors of the difference. Collapse: most of the target in
    one class, unless the source is nearly so; features of the target that hardly vary, or vary along one line where
    there are more than two classes.
    """
    source_name, target = record["domains"]
    found = []
    if record["learnt"] is not None and record["learnt"] < MOST:
        found.append(
            f"Not learnt: only {100 * record['learnt']:.1f} % of {source_name}, whose labels were given, are predicted "
            f"rightly, so that figures of {target} say little."
        )
    found += [
        f"Negative transfer: on {name} the accuracy fell from {100 * entry['start']:.1f} % before the run to "
        f"{100 * entry['end']:.1f} % ({entry['examples']} examples)."
        for name, entry in record["entries"].items()
        if entry["start"] - entry["end"] > 2 * entry["standard_error"]
    ]
    source, predicted = (record["predicted"].get(name, {}).get("end") for name in record["domains"])
    share = min(max(MOST, TIMES * source["share"]), NEARLY_ALL) if source else 1.0
    if predicted and record["classes"] > 1 and predicted["share"] > share:
        found.append(
            f"Collapse: {100 * predicted['share']:.1f} % of {target} are predicted to be of one class, "
            f"{predicted['class']}; of {source_name} at most {100 * source['share']:.1f} %."
        )
    features = record["features"][target]["end"]
    if features["spread"] < LEAST_SPREAD:
        found.append(f"Collapse: the features of {target} hardly vary (spread {features['spread']:.2g}).")
    elif features["effective_rank"] < LEAST_RANK and record["classes"] > 2:
        rank = features["effective_rank"]
        found.append(f"Collapse: the features of {target} vary along one line (effective rank {rank:.2f}).")
    return found
