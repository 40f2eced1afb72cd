"""One model of several, after training: means of the weights of runs, and of a run and what it started from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tljax.assembly.experiment import Experiment
from tljax.assembly.facts import digests
from tljax.assembly.running import evaluate_as_is, predictor
from tljax.assembly.training import summary, trained_variables
from tljax.base.choosing import chosen_by, merit
from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.checkpoints.run import RunCheckpoints
from tljax.train.continuing import claim, differences
from tljax.train.outcome import recorded
from tljax.train.records import Records

SHARES = tuple(i / 10 for i in range(11))
"""What a run may have beside its start: the grid of Wortsman et al. 2022."""


class Tried(NamedTuple):
    """A mean that was evaluated.

    Attributes:
      name: for the table.
      numbers: its metrics on `validation`.
      weights: {"live": flat leaves, "batch_stats": …}.
    """

    name: str
    numbers: Mapping[str, float]
    weights: Mapping[str, Any]


def same_model(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses runs of other models, tasks or strategies; says where they differ."""
    first, faults = next(iter(configs)), []
    for name, config in configs.items():
        for section in ("model", "task", "strategy"):
            lines = differences(configs[first].get(section), config.get(section), f"config.{section}")
            faults += [f"{first} and {name}: {line}" for line in lines]
    raise_faults("The weights of these runs have no mean:", faults)


def trained(experiment: Experiment, workdir: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """{"live": flat leaves, "batch_stats": …} of the run in `workdir`: its best checkpoint, else its newest.

    Raises:
      UserError: a run of adapters, or one without a checkpoint.
    """
    if experiment.plan.adapters:
        raise UserError(
            f"{workdir} trained adapters, and the mean of their factors is not that of the kernels which they make. "
            "Use such runs one by one."
        )
    found = trained_variables(experiment, workdir, say=say)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint of a run.")
    flat = flatten(found[0]["params"])
    live = experiment.plan.live(max((0, *experiment.plan.changes)))
    return {"live": {path: flat[path] for path in live if path in flat}, "batch_stats": found[0]["batch_stats"]}


def mean(parts: Sequence[Mapping[str, Any]], shares: Sequence[float] | None = None) -> dict[str, Any]:
    """The weighted mean of trees, leaf by leaf in float64, in the dtype of the first; equal shares by default."""
    shares = [1 / len(parts)] * len(parts) if shares is None else shares

    def one(*leaves: Any) -> Any:
        total = sum(share * np.asarray(leaf, np.float64) for share, leaf in zip(shares, leaves, strict=True))
        return jax.numpy.asarray(total, leaves[0].dtype)

    return jax.tree.map(one, *parts)


def uniform(experiment: Experiment, parts: Mapping[str, Mapping[str, Any]]) -> list[Tried]:
    """Each run, and last the mean of all: a uniform soup. Wortsman et al. 2022, arXiv 2203.05482."""
    taste = _taster(experiment)
    tried = [taste(name, part) for name, part in parts.items()]
    return [*tried, taste(f"mean of {len(parts)}", mean(list(parts.values())))]


def greedy(experiment: Experiment, parts: Mapping[str, Mapping[str, Any]]) -> list[Tried]:
    """Each run, and last the greedy soup: from the best run on, each next one joins if validation does not suffer.

    Wortsman et al. 2022, arXiv 2203.05482.
    """
    better, taste = _better(experiment), _taster(experiment)
    tried = sorted((taste(name, part) for name, part in parts.items()), key=better, reverse=True)
    members, best = [tried[0]], tried[0]
    for candidate in tried[1:]:
        weights = mean([member.weights for member in [*members, candidate]])
        soup = taste(f"greedy soup of {len(members) + 1}", weights)
        if better(soup) >= better(best):
            members, best = [*members, candidate], soup
    return [*tried, best._replace(name=f"greedy soup of {len(members)}")]


def with_start(experiment: Experiment, part: Mapping[str, Any]) -> list[Tried]:
    """A run and its start in eleven proportions, the best by validation last; a new head has no start and stays.

    Wortsman et al. 2022 (Robust fine-tuning of zero-shot models, WiSE-FT), arXiv 2109.01903.
    """
    flat = flatten(experiment.variables["params"])
    fresh = ("head/", "method/") if experiment.fresh_head else ("method/",)
    start = {
        "live": {path: leaf if path.startswith(fresh) else flat[path] for path, leaf in part["live"].items()},
        "batch_stats": experiment.variables["batch_stats"],
    }
    taste = _taster(experiment)
    tried = [taste(f"{share:.1f} of the run", mean([start, part], [1 - share, share])) for share in SHARES]
    return [*tried, max(tried, key=_better(experiment))]


def keep(experiment: Experiment, chosen: Tried, workdir: Path, seconds: Mapping[str, float]) -> None:
    """Writes a run folder that `evaluate`, `predict` and `export` read as any other; `seconds` are the averaging's."""
    found, stages = digests(experiment), summary(experiment)
    claim(workdir, experiment.config, found, stages)
    known = {name: round(value, 3) for name, value in seconds.items()}
    known["live_parameters"] = stages["total"]["live_at_end"]
    with recorded(workdir, experiment.config, found, **known) as line:
        checkpoints, step = RunCheckpoints(workdir / "checkpoints"), last_step(experiment)
        average = chosen.weights["live"] if experiment.plan.average is not None else {}
        try:
            checkpoints.save(step, {**chosen.weights, "average": average}, {"step": step, "digests": found})
        finally:
            checkpoints.close()
        records = Records(workdir)
        records.truncate(0)
        records.evaluation(step, "validation", dict(chosen.numbers), {})
        records.write("end", step=step, seconds=line["seconds"])
        records.close()
        line.update(state="done", step=step, steps=step, metrics={"validation": dict(chosen.numbers)})


def last_step(experiment: Experiment) -> int:
    """The step at whose end every leaf that ever trains is live."""
    return max((0, *experiment.plan.changes)) + 1


def _taster(experiment: Experiment) -> Callable[[str, Mapping[str, Any]], Tried]:
    """(name, weights) → `Tried`; compiled once."""
    predict = predictor(experiment, task=experiment.task_of("validation"))
    flat = flatten(experiment.variables["params"])

    def taste(name: str, weights: Mapping[str, Any]) -> Tried:
        params = unflatten({**flat, **weights["live"]})
        variables = {**experiment.variables, "params": params, "batch_stats": weights["batch_stats"]}
        numbers, _, _ = evaluate_as_is(experiment._replace(variables=variables), "validation", predict)
        return Tried(name, numbers, weights)

    return taste


def _better(experiment: Experiment) -> Callable[[Tried], float]:
    chosen = chosen_by(experiment.task.main, experiment.settings.metric)
    return lambda tried: merit(*chosen, tried.numbers)
