"""What several verbs share."""

from pathlib import Path

from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.cli.main import Arguments


def need_config(arguments: Arguments) -> dict:
    """The config, or an error that says how to give one."""
    if arguments.config is None:
        folder = arguments.workdir
        missing = "" if folder is None else f"--workdir={folder} is no folder of a run: it has no config.json. "
        raise UserError(f"{missing}Give --config=configs/NAME.py, or --workdir of a run that was made before.")
    return arguments.config


def need_workdir(arguments: Arguments) -> Path:
    """The run folder, or an error that says how to give one."""
    if arguments.workdir is None:
        raise UserError("Give --workdir=runs/NAME.")
    return arguments.workdir


def build_experiment(arguments: Arguments):
    """The experiment of the command line."""
    from tljax.assembly.experiment import build

    return build(need_config(arguments), data_dir=arguments.data_dir)


def chosen_variables(experiment, workdir: Path | None, say) -> tuple[dict, int | None]:
    """(variables, step): of the run's best checkpoint, else its newest, else as loaded (step None)."""
    from tljax.assembly.training import trained_variables

    found = trained_variables(experiment, workdir, say=say) if workdir is not None else None
    return found or (experiment.variables, None)


def need_split(name: str | None, names) -> str:
    """The data entry to evaluate on: the one asked for, else test, else validation."""
    if name is None:
        name = next((n for n in ("test", "validation") if n in names), None)
    if name is None or name not in names:
        raise UserError(f"config.data has no entry {name or 'test'!r}. {suggest(name or 'test', names)}")
    return name
