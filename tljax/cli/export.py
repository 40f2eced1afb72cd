"""`export`: the trained model in the format that its checkpoint came in."""

from pathlib import Path

from tljax.cli.common import build_experiment, chosen_variables, need_workdir
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Writes the run's best checkpoint as a folder that the reference library loads."""
    workdir = need_workdir(arguments)
    experiment = build_experiment(arguments)
    from tljax.checkpoints.save import save_pretrained
    from tljax.train.display import Display

    display = Display()
    variables, step = chosen_variables(experiment, workdir, display.say)
    folder = Path(arguments.options.output or workdir / "export")
    processor = next(iter(experiment.readers.values()), None)
    save_pretrained(experiment.model, variables, folder, processor=processor, classes=experiment.classes)
    origin = "as loaded" if step is None else f"of step {step}"
    display.say(f"exported the model {origin} to {folder}")
    return 0
