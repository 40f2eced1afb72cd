"""`evaluate`: the metrics of a trained run, or of a checkpoint as it is, on one split."""

from tljax.base.errors import UserError
from tljax.cli.common import build_experiment, chosen_variables, need_split
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Evaluates the run's best checkpoint; without a run, the pretrained model itself."""
    experiment = build_experiment(arguments)
    from tljax.assembly.running import evaluate_as_is
    from tljax.train.display import Display
    from tljax.train.records import Records

    display = Display()
    split = need_split(arguments.options.split, experiment.sources)
    variables, step = chosen_variables(experiment, arguments.workdir, display.say)
    if step is None and experiment.fresh_head:
        raise UserError(
            "There is nothing to evaluate: the head is new and no checkpoint of a run was found"
            + (f" in {arguments.workdir}." if arguments.workdir else "; give --workdir of a trained run.")
        )
    numbers, tables, _ = evaluate_as_is(experiment._replace(variables=variables), split)
    if arguments.workdir is not None:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        records = Records(arguments.workdir)
        records.evaluation(step or 0, split, numbers, tables)
        records.close()
    display.metrics(
        f"{experiment.sources[split].name} ({len(experiment.sources[split].records)} examples)",
        {split: numbers},
    )
    return 0
