"""Sweeps: many runs of one config, by any number of workers, which start the command line as processes; never jax."""

SAMPLERS = {
    "tpe": "tljax.sweeps.search:tpe",
    "random": "tljax.sweeps.search:at_random",
    "grid": "tljax.sweeps.search:at_random",
}
"""Name → function (seed, **options) → Optuna's sampler. With a grid alone nothing is sampled."""

PRUNERS = {"median": "tljax.sweeps.search:median", "hyperband": "tljax.sweeps.search:hyperband"}
"""Name → function (**options) → Optuna's pruner."""

LAUNCHERS = {
    "local": "tljax.sweeps.launchers:local",
    "slurm": "tljax.sweeps.launchers:slurm",
    "dry": "tljax.sweeps.launchers:dry",
}
"""Name → function of a `tljax.sweeps.launchers.Order`, which starts the workers and returns an exit code."""
