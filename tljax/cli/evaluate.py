"""`evaluate`: the metrics of a trained run, or of a checkpoint as it is, on one split."""

import io
from pathlib import Path

from tljax.base.errors import UserError
from tljax.base.files import write_whole
from tljax.cli.common import build_experiment, chosen_variables, need_split
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Evaluates the run's best checkpoint; without a run, the pretrained model itself."""
    experiment = build_experiment(arguments)
    from tljax.assembly.running import evaluate_as_is
    from tljax.train.display import Display
    from tljax.train.records import Records

    display = Display()
    if arguments.options.features is not None and (arguments.workdir is None or arguments.options.features < 3):
        raise UserError("--features=N keeps the features of N examples, 3 or more, in the run folder: give --workdir.")
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
        if arguments.options.features:
            display.say(f"features: {_keep_features(arguments, experiment._replace(variables=variables), split)}")
    display.metrics(
        f"{experiment.sources[split].name} ({len(experiment.sources[split].records)} examples)",
        {split: numbers},
    )
    return 0


def _keep_features(arguments: Arguments, experiment, split: str) -> Path:
    """Writes features/SPLIT.npz into the run folder: `features` (N, D), `labels` (N,) and the names of `classes`."""
    import numpy as np

    from tljax.assembly.running import features_of

    features, labels = features_of(experiment, split, arguments.options.features)
    file = io.BytesIO()
    np.savez_compressed(file, features=features, labels=labels, classes=np.array(experiment.classes))
    path = arguments.workdir / "features" / f"{split}.npz"
    path.parent.mkdir(exist_ok=True)
    return write_whole(path, file.getvalue())
