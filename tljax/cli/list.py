"""`list`: what there is, by room."""

import importlib
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tljax.cli.main import Arguments

ROOMS = (
    ("model families", "tljax.models", "FAMILIES"),
    ("checkpoint formats", "tljax.checkpoints", "FORMATS"),
    ("data sources", "tljax.data", "SOURCES"),
    ("data sets (tljax:NAME)", "tljax.data", "BUILDERS"),
    ("tasks", "tljax.tasks", "TABLE"),
    ("strategies", "tljax.strategies", "TABLE"),
    ("methods", "tljax.methods", "TABLE"),
    ("optimizers", "tljax.optim", "OPTIMIZERS"),
    ("schedules", "tljax.optim", "SCHEDULES"),
    ("samplers of sweeps", "tljax.sweeps", "SAMPLERS"),
    ("pruners of sweeps", "tljax.sweeps", "PRUNERS"),
    ("launchers of sweeps", "tljax.sweeps", "LAUNCHERS"),
    ("verbs", "tljax.cli", "VERBS"),
)


def run(arguments: Arguments) -> int:
    """Prints the names that a config may use."""
    table = Table("what", "names")
    for what, module, name in ROOMS:
        table.add_row(what, ", ".join(getattr(importlib.import_module(module), name)))
    configs = sorted(p.stem for p in Path("configs").glob("*.py"))
    if configs:
        table.add_row("configs", ", ".join(configs))
    Console().print(table)
    return 0
