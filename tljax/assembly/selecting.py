"""Which checkpoint, which depth, which strategy: what several checkpoints make of a task's data, scored at some depths.

All is told from the entries `train` and `validation`; an entry to test on is not even opened.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from tljax import domains, transferability
from tljax.assembly.baseline import raw_features
from tljax.assembly.depths import Depths, Pretrained, read_depths
from tljax.assembly.domains import EXAMPLES
from tljax.assembly.experiment import Experiment, build, open_entries, used_paths
from tljax.assembly.model import make_model
from tljax.assembly.sections import Select
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call, lookup, suggest
from tljax.base.types import Source
from tljax.data.subsets import labels_of, subset
from tljax.strategies.lora import DEFAULT
from tljax.strategies.stages import by_stage
from tljax.strategies.targets import kernels
from tljax.train.held_out import Right, held_out_right
from tljax.transferability.advice import STRATEGIES, Advice, Evidence, advise, ahead, gap, percent

SCORED = ("train", "validation")
"""The entries of config.data that are read."""
WHOLE = ("model", "strategy")
"""Sections that stand in the place of the config's own; of the others single values do."""
TIE = "logme"
"""The score that orders checkpoints which accuracies do not tell apart."""
ADAPTER_RATE = 20
"""The learning rate of adapters, as a multiple of that of fine-tuning; the head keeps its own."""


class Candidate(NamedTuple):
    """A checkpoint to compare: `name`, and `sections`, which are laid over the config for it."""

    name: str
    sections: Mapping[str, Any]


class Rows(NamedTuple):
    """The examples that are scored.

    Attributes:
      sources: `train`, and `validation` where the config has one.
      labels: entry → (N,).
      classes: Y.
      seed: of the parts of the cross-validation.
    """

    sources: Mapping[str, Source]
    labels: Mapping[str, np.ndarray]
    classes: int
    seed: int

    def right(self, features: Mapping[str, np.ndarray]) -> Right:
        """Which examples simple classifiers are right on that they were not fitted to."""
        there = "validation" in self.sources
        validation = (features["validation"], self.labels["validation"]) if there else None
        given = features["train"], self.labels["train"], self.classes
        return held_out_right(*given, validation=validation, seed=self.seed)


def laid_over(config: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `sections` over it: `model` and `strategy` as a whole, of the others single values."""
    found = dict(config)
    for key, value in sections.items():
        whole = key in WHOLE or not isinstance(value, Mapping) or not isinstance(found.get(key), Mapping)
        found[key] = value if whole else {**found[key], **value}
    return found


def settings_of(config: Mapping[str, Any]) -> Select:
    """The section `select`, checked."""
    return call(Select, (), config.get("select"), where="config.select").check()


def candidates(config: Mapping[str, Any], wanted: str | None) -> list[Candidate]:
    """The checkpoints to compare.

    Args:
      config: with the section `select`.
      wanted: names of `select.checkpoints`, or sources (`config.model.source`), or NAME=SOURCE, separated by commas;
        None is all of `select.checkpoints`, or the config's own model where there are none.

    Raises:
      UserError: a name that is not there, or that stands twice.
    """
    known = settings_of(config).checkpoints
    if wanted is None:
        return [Candidate(*each) for each in (dict(known) or {"checkpoint": {}}).items()]
    found, faults = [], []
    for text in filter(None, (each.strip() for each in wanted.split(","))):
        name, _, source = text.partition("=")
        if name in known and not source:
            sections: Mapping[str, Any] = known[name]
        elif known and not source and not set(name) & set("/:.$"):
            faults.append(f"{name!r} is no checkpoint of config.select. {suggest(name, known)}")
            continue
        else:
            kept = {key: x for key, x in (config.get("model") or {}).items() if key not in ("sha256", "adapters")}
            sections = {"model": {**kept, "source": source or name}}
            name = name if source else PurePath(name).stem
        if name in [each.name for each in found]:
            faults.append(f"two are called {name!r}; name them: NAME={source or text}.")
        found.append(Candidate(name, sections))
    if not found and not faults:
        faults.append("none is named.")
    raise_faults("--checkpoints cannot be compared:", faults)
    return found


def select(
    config: Mapping[str, Any], wanted: str | None = None, *, data_dir: str | None = None, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the verb `select` finds before any training, as JSON values.

    Args:
      config: resolved, with the section `select`.
      wanted: see `candidates`.
      data_dir: the folder of raw data.
      say: prints one line.

    Returns:
      `examples` and `classes` of the task, `held_out` (how accuracies were told), `raw` (the classifier on the inputs;
      None where there is none), `checkpoints`, the first advised one first, each with its `depths`, `own` (the scores
      of its own classifier), `advice` and `ways` (strategy → sections laid over the config); `recommendation`.

    Raises:
      UserError: a task that is not one class an example, or see `candidates` and `build`.
    """
    settings, given = settings_of(config), candidates(config, wanted)
    found, evidence, about = [], {}, {}
    for candidate in given:
        mine = laid_over(config, candidate.sections)
        experiment, pretrained = _built(mine, data_dir)
        rows = _rows(experiment, settings)
        if not about:
            about, (raw, raw_right) = _about(experiment, rows), _raw(experiment, settings, rows)
        elif about != _about(experiment, rows):
            raise UserError(f"The checkpoint {candidate.name} changes the data, which must be the same for all.")
        say(f"{candidate.name}: reading {sum(len(x.records) for x in rows.sources.values())} examples")
        depths = {
            name: read_depths(experiment, pretrained, source, experiment.processors[name], most=settings.depths)
            for name, source in rows.sources.items()
        }
        entry, known = _scored(experiment, settings_of(mine), rows, depths, pretrained, data_dir)
        known = known._replace(raw=raw_right, per_class=about["per_class"])
        advice, evidence[candidate.name] = advise(known), known
        entry |= {"name": candidate.name, "advice": _plain_advice(advice)}
        entry["ways"] = {
            way: laid_over({key: x for key, x in candidate.sections.items() if key != "select"}, sections)
            for way, sections in ways(mine, experiment, settings, advice, adaptable=known.adaptable).items()
        }
        found.append(entry)
    ranked, reason = _ranked(found, evidence)
    first = ranked[0]
    recommendation = {"checkpoint": first["name"], **first["advice"]}
    recommendation["sections"] = first["ways"][recommendation["strategy"]]
    recommendation["reasons"] = [*([reason] if reason else []), *first["advice"]["reasons"]]
    return {**about, "raw": raw, "checkpoints": ranked, "recommendation": recommendation}


def _built(config: Mapping[str, Any], data_dir: str | None) -> tuple[Experiment, Pretrained]:
    """(the experiment of a linear probe, the checkpoint with its own head)."""
    data = {name: entry for name, entry in (config.get("data") or {}).items() if name in SCORED}
    if not data.get("train"):
        raise UserError("config.data has no `train`, so there is nothing to score checkpoints on.")
    config = {key: x for key, x in config.items() if key not in ("method", "select", "optim")}
    made: list[tuple] = []

    def make(section: Any, key: Any) -> tuple:
        made.append(make_model(section, key))
        return made[-1]

    config |= {"strategy": {"linear_probe": {}}, "data": data}
    experiment = build(config, data_dir=data_dir, make=make)
    return experiment, Pretrained(*made[0][:2])


def _rows(experiment: Experiment, settings: Select) -> Rows:
    sources, labels = {}, {}
    for name, source in experiment.sources.items():
        if len(source.records) > settings.examples:
            source = subset(source, hold_out=settings.examples, take="held_out", seed=experiment.seed)
        sources[name], labels[name] = source, labels_of(source)
        fit = labels[name] is not None and labels[name].dtype == np.int64 and experiment.classes is not None
        if not fit or experiment.task.name != "classification":
            raise UserError(
                f"Checkpoints are compared by one class an example, and config.data.{name} has no such labels, or the "
                f"task, {experiment.task.name}, predicts no such classes."
            )
    return Rows(sources, labels, len(experiment.classes), experiment.seed)


def _about(experiment: Experiment, rows: Rows) -> dict[str, Any]:
    counts = np.bincount(labels_of(experiment.sources["train"]), minlength=rows.classes)
    held_out = "validation" if "validation" in rows.sources else "cross-validation within train"
    return {
        "examples": {name: len(source.records) for name, source in experiment.sources.items()},
        "scored": {name: len(source.records) for name, source in rows.sources.items()},
        "classes": rows.classes,
        "per_class": int(counts[counts > 0].min()),
        "held_out": held_out,
    }


def _raw(experiment: Experiment, settings: Select, rows: Rows) -> tuple[dict[str, Any] | None, np.ndarray | None]:
    """(the numbers of the raw inputs, which examples the better classifier is right on); None each without any."""
    features = raw_features(rows.sources, experiment.processors)
    if features is None:
        return None, None
    right = rows.right(features)
    return _row(rows, features, right, settings), right.better


def _scored(
    experiment: Experiment,
    settings: Select,
    rows: Rows,
    depths: Mapping[str, Depths],
    pretrained: Pretrained,
    data_dir: str | None,
) -> tuple[dict[str, Any], Evidence]:
    """(the record of a checkpoint, what rules know of it)."""
    away = _distances(experiment, settings, depths["train"], pretrained, data_dir)
    right, table = {}, []
    for depth in depths["train"].features:
        features = {name: found.features[depth] for name, found in depths.items()}
        right[depth] = rows.right(features)
        row = _row(rows, features, right[depth], settings)
        table.append({"depth": depth, **row, "distance": away.get(depth)})
    own = depths["train"].own
    scored = {name: lookup(transferability.TABLE, name, what="score") for name in ("leep", "nce")}
    evidence = Evidence(
        per_class=0,
        right={depth: each.linear for depth, each in right.items()},
        neighbour={depth: each.neighbour for depth, each in right.items()},
        alignment={row["depth"]: row["alignment"] for row in table if row["alignment"] is not None},
        distance=table[-1]["distance"],
        adaptable=_adaptable(experiment),
    )
    section = experiment.config.get("model") or {}
    entry = {
        "source": section.get("source") or f"{section['family']}, random",
        "depths": table,
        "own": None if own is None else {name: score(own, rows.labels["train"]) for name, score in scored.items()},
    }
    return entry, evidence


def _row(rows: Rows, features: Mapping[str, np.ndarray], right: Right, settings: Select) -> dict[str, Any]:
    """The numbers of one depth, or of the raw inputs."""
    labels, x = rows.labels["train"], features["train"]
    scores = {name: lookup(transferability.TABLE, name, what="score")(x, labels) for name in settings.scores}
    aligned = domains.linear_cka(x, np.eye(rows.classes)[labels])
    share = float(right.linear.mean())
    return {
        "width": x.shape[1],
        "accuracy": share,
        "error": math.sqrt(share * (1 - share) / len(right.linear)),
        "neighbour": float(right.neighbour.mean()),
        "scores": scores,
        "alignment": aligned if math.isfinite(aligned) else None,
    }


def _distances(
    experiment: Experiment, settings: Select, train: Depths, pretrained: Pretrained, data_dir: str | None
) -> dict[str, float]:
    """Depth → proxy A-distance of the source's data and the task's; {} where no source is named."""
    if settings.source is None:
        return {}
    opened = open_entries({"seed": experiment.seed, "data": {"source": settings.source}}, data_dir=data_dir)["source"]
    source = subset(opened, limit=EXAMPLES, seed=experiment.seed)
    processor = experiment.readers["train"]
    processor = processor.replace(**settings.source["processor"]) if settings.source.get("processor") else processor
    found = read_depths(experiment, pretrained, source, processor, most=settings.depths)
    some = np.random.default_rng(experiment.seed).permutation(len(next(iter(train.features.values()))))[:EXAMPLES]
    if min(len(some), len(source.records)) < domains.FOLDS:
        return {}
    return {
        depth: domains.proxy_a_distance(found.features[depth], mine[some]) for depth, mine in train.features.items()
    }


def _adaptable(experiment: Experiment) -> bool:
    paths = used_paths(experiment.variables, experiment.model.stop)
    return bool(kernels("lora", paths, None, DEFAULT, required=False))


def ways(
    config: Mapping[str, Any], experiment: Experiment, settings: Select, advice: Advice, *, adaptable: bool
) -> dict[str, dict[str, Any]]:
    """Strategy → the sections that make it of `config`, whose learning rate is taken for that of fine-tuning."""
    stages = list(by_stage(experiment.stages, used_paths(experiment.variables, experiment.model.stop)))
    below = stages.index(advice.depth) + 1 if advice.depth in stages else len(stages)
    above = len(stages) - below or max(1, round(len(stages) / 3))
    adapters: dict[str, Any] = {"strategy": {"lora": {"rank": 8}}}
    if "learning_rate" in (optim := config.get("optim") or {}):
        rates = optim["learning_rate"] * ADAPTER_RATE, optim.get("head_rate", 1.0) / ADAPTER_RATE
        adapters["optim"] = dict(zip(("learning_rate", "head_rate"), rates, strict=True))
    found = {
        "linear_probe": {"strategy": {"linear_probe": {}}},
        "last_stages": {"strategy": {"last_k": {"k": above}}},
        **({"adapters": adapters} if adaptable else {}),
        "fine_tune": {"strategy": {"fine_tune": {}}},
    }
    found |= {name: dict(sections) for name, sections in settings.strategies.items()}
    return {name: found[name] for name in STRATEGIES if name in found}


def _plain_advice(advice: Advice) -> dict[str, Any]:
    return {**advice._asdict(), "reasons": list(advice.reasons)}


def _ranked(found: list[dict], evidence: Mapping[str, Evidence]) -> tuple[list[dict], str | None]:
    """(the checkpoints, the first advised first; why it is the first, None where there is one).

    By the accuracy of a linear classifier at the best depth; those that it does not tell from the best one by LogME.
    """
    right = {name: known.right[known.best] for name, known in evidence.items()}
    order = sorted(found, key=lambda entry: -right[entry["name"]].mean())
    leader = order[0]["name"]
    tied = [entry for entry in order if not ahead(right[leader], right[entry["name"]])]
    if len(tied) > 1 and all(TIE in entry["depths"][-1]["scores"] for entry in tied):
        tied.sort(key=lambda entry: -entry["depths"][-1]["scores"][TIE])
    ranked = [*tied, *order[len(tied) :]]
    if len(ranked) == 1:
        return ranked, None
    first, second = (entry["name"] for entry in ranked[:2])
    said = f"{first} has {percent(right[first].mean())} at its best depth, {second} {percent(right[second].mean())}"
    if len(tied) > 1:
        return ranked, f"{said}: that does not tell {len(tied)} checkpoints apart, of which {first} has the best LogME."
    lead, error = gap(right[first], right[second])
    return ranked, f"{said}: {100 * lead:.1f} ± {100 * error:.1f} points less."
