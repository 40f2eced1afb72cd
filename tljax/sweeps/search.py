"""Optuna's samplers and pruners, by name and with their own options."""

from collections.abc import Mapping
from typing import Any

from tljax.base.errors import UserError
from tljax.base.tables import call, lookup
from tljax.sweeps import PRUNERS, SAMPLERS


def make_sampler(given: str | Mapping[str, Any] | None, seed: int):
    """The sampler of one trial: with a seed of its own, two workers at a time do not draw the same numbers."""
    name, options = _named(given or "tpe", "sampler")
    return call(lookup(SAMPLERS, name, what="sampler"), (seed,), options, where="sweep().sampler")


def make_pruner(given: str | Mapping[str, Any] | None):
    """The pruner of a study; one that never prunes where none is given."""
    if given is None:
        from optuna.pruners import NopPruner

        return NopPruner()
    name, options = _named(given, "pruner")
    return call(lookup(PRUNERS, name, what="pruner"), (), options, where="sweep().pruner")


def _named(given: str | Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    options = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"sweep().{what} is {given!r}; it must be a name, or a dict with a `name` and options.")
    return name, options


def tpe(seed: int, *, startup: int = 10, multivariate: bool = True):
    """Tree-structured Parzen estimator (Bergstra et al. 2011, Falkner et al. 2018).

    Args:
      seed: of the trial.
      startup: trials at random before the first that learns from others.
      multivariate: values are chosen together and not each for itself.
    """
    from optuna.samplers import TPESampler

    return TPESampler(n_startup_trials=startup, multivariate=multivariate, seed=seed)


def at_random(seed: int):
    """Each value by itself, at random."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def median(*, startup: int = 5, warmup: int = 0, every: int = 1):
    """Stops a trial whose best value so far is worse than the median of the others at the same evaluation.

    Args:
      startup: trials that are finished before any is stopped.
      warmup: evaluations before which no trial is stopped.
      every: evaluations between two decisions.
    """
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup, interval_steps=every)


def hyperband(*, least: int = 1, most: int | str = "auto", factor: int = 3):
    """Hyperband (Li et al. 2018), asynchronous: of the trials of a bracket one in `factor` goes on at each rung.

    Args:
      least: evaluations before the first rung, at which trials are compared.
      most: evaluations of a whole trial; "auto" takes them from the first one that is finished.
      factor: see above.
    """
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=factor)
