"""What `sweep()` of a config may say, and the settings that follow from it."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tljax.base.configs import SECTIONS, keys_of
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call, suggest

MODES = ("max", "min")
RANGES = ("uniform", "log_uniform")
JOINT, SEED = "joint", "seed"
"""The axes that are no key of their own: settings of several keys, and the seeds."""
CHOOSES = "validation"
"""The split whose metric chooses; no other may."""


class Sweep(NamedTuple):
    """What `sweep()` returns: plain data. Keys are dotted keys of the config.

    Attributes:
      grid: {key: values}; every combination is run.
      joint: settings of several keys that belong together, [{"name": "large", key: value, …}, …]; one more axis of the
        grid. The name is for tables, and may be left out.
      seeds: a list of seeds, or a number n for 0 … n − 1. One more axis of the grid; a sampler never sees it, for it
        would learn which seeds were lucky.
      choice: {key: values}, of which the sampler takes one for each trial.
      uniform: {key: (low, high)}, from which it takes a number.
      log_uniform: the same, with a uniform logarithm: for rates.
      trials: how many are sampled; the combinations of the grid take turns. Without anything to sample there are as
        many as combinations.
      sampler: "tpe" (Bergstra et al. 2011), "random", or "grid" where nothing is sampled; or a dict with such a `name`
        and options of Optuna's sampler. None is "tpe", or "grid".
      pruner: None, "median", "hyperband" (Li et al. 2018), or a dict as above: what stops a trial that does badly. The
        resource is the number of evaluations on validation.
      metric: of validation, by which trials are compared; None is the task's own.
      mode: "max" or "min"; None is the task's own.
    """

    grid: Mapping[str, Sequence[Any]] = {}
    joint: Sequence[Mapping[str, Any]] = ()
    seeds: int | Sequence[int] | None = None
    choice: Mapping[str, Sequence[Any]] = {}
    uniform: Mapping[str, Sequence[float]] = {}
    log_uniform: Mapping[str, Sequence[float]] = {}
    trials: int | None = None
    sampler: str | Mapping[str, Any] | None = None
    pruner: str | Mapping[str, Any] | None = None
    metric: str | None = None
    mode: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether a sampler has anything to do."""
        return bool(self.choice or self.uniform or self.log_uniform)


class Axis(NamedTuple):
    """One thing that differs between trials.

    Attributes:
      name: the dotted key, or "joint".
      settings: {label: {dotted key: value}} of an axis with named settings; {} of a range.
      low, high, log: of a range.
    """

    name: str
    settings: Mapping[str | int | float | bool | None, Mapping[str, Any]] = {}
    low: float = 0.0
    high: float = 0.0
    log: bool = False


def read_sweep(given: Any, config: Mapping[str, Any]) -> Sweep:
    """`given`, what `sweep()` of a config returned, checked against the resolved config.

    Raises:
      UserError: unknown keys, axes that name no key of the config, values that are none, a metric of another split than
        validation; all in one message.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"sweep() returns a {type(given).__name__}; it must be a dict of axes.")
    sweep = call(Sweep, (), given, where="sweep()")
    raise_faults("sweep() cannot be used:", [*_shapes(sweep), *_numbers(sweep), *_metric(sweep)])
    raise_faults("sweep() cannot be used:", _keys(sweep, config))
    raise_faults("sweep() cannot be used:", _labels(sweep))
    if CHOOSES not in {name for name, entry in (config.get("data") or {}).items() if entry}:
        raise UserError(
            f"config.data has no `{CHOOSES}`, by which trials would be compared. Hold some of `train` out: "
            "docs/configs.md shows how. The test set never chooses."
        )
    return sweep._replace(metric=sweep.metric and sweep.metric.removeprefix(f"{CHOOSES}/"))


def fixed_axes(sweep: Sweep) -> list[Axis]:
    """The axes of which every combination is run; the seeds first, so that each combination soon has one result."""
    seeds = range(sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds or ()
    axes = [Axis(SEED, {seed: {SEED: seed} for seed in seeds})] if seeds else []
    axes += [_of_values(key, values) for key, values in sweep.grid.items()]
    if sweep.joint:
        labels = [each.get("name", text_of(each)) for each in sweep.joint]
        settings = [{key: value for key, value in each.items() if key != "name"} for each in sweep.joint]
        axes.append(Axis(JOINT, dict(zip(labels, settings, strict=True))))
    return axes


def sampled_axes(sweep: Sweep) -> list[Axis]:
    """The axes of which the sampler takes a value for each trial."""
    ranges = [
        Axis(key, low=float(low), high=float(high), log=kind == "log_uniform")
        for kind in RANGES
        for key, (low, high) in getattr(sweep, kind).items()
    ]
    return [_of_values(key, values) for key, values in sweep.choice.items()] + ranges


def points(sweep: Sweep) -> list[dict[str, Any]]:
    """{axis: label} of the fixed axes, for every trial of the study."""
    axes = fixed_axes(sweep)
    combinations = itertools.product(*(axis.settings for axis in axes))
    found = [dict(zip((axis.name for axis in axes), labels, strict=True)) for labels in combinations]
    return [found[i % len(found)] for i in range(sweep.trials)] if sweep.sampled else found


def values_of(sweep: Sweep, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of a trial, from {axis: label, or number of a range}."""
    found: dict[str, Any] = {}
    for axis in (*fixed_axes(sweep), *sampled_axes(sweep)):
        if axis.name in chosen:
            found.update(axis.settings[chosen[axis.name]] if axis.settings else {axis.name: chosen[axis.name]})
    return found


def text_of(value: Any) -> str:
    """A setting in few words: {"lora": {"rank": 8}} is "lora(rank=8)"."""
    if isinstance(value, Mapping):
        return ", ".join(_named(key, item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(text_of, value))}]"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _named(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{key}({text_of(value)})" if value else key
    return f"{key}={text_of(value)}"


def _of_values(key: str, values: Sequence[Any]) -> Axis:
    plain = (str, int, float, bool, type(None))
    return Axis(key, {value if isinstance(value, plain) else text_of(value): {key: value} for value in values})


def _shapes(sweep: Sweep) -> Iterator[str]:
    """Faults of what is no dict, no list, or empty."""
    for kind in ("grid", "choice", *RANGES):
        given = getattr(sweep, kind)
        if not isinstance(given, Mapping):
            yield f"{kind} is {given!r}; it must be a dict of keys and their values."
            continue
        for key, values in given.items():
            if not isinstance(values, (list, tuple)) or not values:
                yield f"{kind}: {key} is {values!r}; it must be a list of values."
            elif kind in RANGES and (len(values) != 2 or not all(map(_is_number, values)) or values[0] >= values[1]):
                yield f"{kind}: {key} is {values!r}; it must be two numbers, the lower one first."
            elif kind == "log_uniform" and values[0] <= 0:
                yield f"{kind}: {key} is {values!r}; a logarithm needs numbers above 0."
            elif not _is_plain(values):
                yield f"{kind}: {key} holds what is no plain data: {values!r}."
    if not isinstance(sweep.joint, (list, tuple)) or not all(isinstance(each, Mapping) for each in sweep.joint):
        yield f"joint is {sweep.joint!r}; it must be a list of dicts of keys and their values."
    elif not _is_plain(sweep.joint):
        yield f"joint holds what is no plain data: {sweep.joint!r}."
    seeds = sweep.seeds
    one = isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0
    several = isinstance(seeds, (list, tuple)) and seeds and all(type(seed) is int for seed in seeds)
    if not (seeds is None or one or several):
        yield f"seeds is {seeds!r}; it must be a number of seeds, or a list of them."


def _numbers(sweep: Sweep) -> Iterator[str]:
    """Faults of trials and sampler."""
    name = sweep.sampler.get("name") if isinstance(sweep.sampler, Mapping) else sweep.sampler
    if sweep.sampled:
        if type(sweep.trials) is not int or sweep.trials < 1:
            yield f"trials is {sweep.trials!r}; where values are sampled, it must say how many trials there are."
        if name == "grid":
            yield "sampler is 'grid', and choice, uniform and log_uniform are sampled: name 'tpe' or 'random'."
    else:
        if sweep.trials is not None:
            yield "trials is given and nothing is sampled: every combination of the grid is run, once."
        if name not in (None, "grid"):
            yield f"sampler is {name!r}, and there is nothing to sample: name choice, uniform or log_uniform axes."
    if not (sweep.grid or sweep.joint or sweep.seeds or sweep.sampled):
        yield f"there is no axis. {suggest('', ('grid', 'joint', 'seeds', 'choice', *RANGES))}"


def _metric(sweep: Sweep) -> Iterator[str]:
    if sweep.mode not in (None, *MODES):
        yield f"mode is {sweep.mode!r}. {suggest(sweep.mode, MODES)}"
    if sweep.metric is None:
        return
    if not isinstance(sweep.metric, str):
        yield f"metric is {sweep.metric!r}; it must be the name of a metric of {CHOOSES}."
    elif "/" in sweep.metric and not sweep.metric.startswith(f"{CHOOSES}/"):
        yield f"metric is {sweep.metric!r}: trials are compared on {CHOOSES}. To choose on other data is refused."


def _keys(sweep: Sweep, config: Mapping[str, Any]) -> Iterator[str]:
    """Faults of keys that the config does not have, and of keys that two axes set."""
    accepted = {*keys_of(config), *SECTIONS}
    axes = [*fixed_axes(sweep), *sampled_axes(sweep)]
    mine = [(number, key) for number, axis in enumerate(axes) for key in _keys_of_axis(axis)]
    for _, key in mine:
        if key not in accepted:
            near = [other for other in accepted if other.rpartition(".")[0] == key.rpartition(".")[0]] or accepted
            yield f"{key!r} is no key of the config; state it there, then sweep it. {suggest(key, near)}"
    for (one, a), (two, b) in itertools.combinations(mine, 2):
        if one != two and (a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")):
            yield f"{a!r} and {b!r} set the same value; say in `joint` what belongs together."


def _keys_of_axis(axis: Axis) -> list[str]:
    found = [key for setting in axis.settings.values() for key in setting]
    return list(dict.fromkeys(found)) if axis.settings else [axis.name]


def _labels(sweep: Sweep) -> Iterator[str]:
    """Faults of settings that stand twice."""
    given = {**sweep.grid, **sweep.choice, **({JOINT: sweep.joint} if sweep.joint else {})}
    for axis in (*fixed_axes(sweep), *sampled_axes(sweep)):
        if axis.name in given and len(axis.settings) != len(given[axis.name]):
            yield f"{axis.name} has settings that are equal, or have equal names: {', '.join(map(str, axis.settings))}."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
