"""`export`: the trained model in the format that its checkpoint came in."""

from pathlib import Path

from tljax.cli.common import build_experiment, chosen_variables, need_workdir
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Writes the run's best checkpoint as a folder that the reference library loads."""
    workdir = need_workdir(arguments)
    experiment = build_experiment(arguments)
    from tljax.checkpoints.save import save_pretrained
    from tljax.tasks.several import with_one_head
    from tljax.train.display import Display

    display = Display()
    variables, step = chosen_variables(experiment, workdir, display.say)
    folder = Path(arguments.options.output or workdir / "export")
    model, classes, processor = experiment.model, experiment.classes, next(iter(experiment.readers.values()), None)
    parts = tuple(experiment.task.parts)
    if kept := arguments.options.head or (parts[0] if len(parts) == 1 else None):
        model, variables = with_one_head(model, variables, kept)
        name = next(name for name, entry in experiment.entries.items() if entry.task == kept)
        classes, processor = experiment.sources[name].classes, experiment.readers[name]
    save_pretrained(model, variables, folder, processor=processor, classes=classes)
    origin = "as loaded" if step is None else f"of step {step}"
    display.say(f"exported the model {origin} to {folder}")
    return 0
