"""`soup`: one model of several runs, or of a run and its start."""

import json
import time
from pathlib import Path

from tljax.base.errors import UserError
from tljax.cli.common import need_workdir
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Writes the mean of the runs that `--input` names into `--workdir`, chosen by the validation data of the first.

    Several runs give their mean, or with `--greedy` that of those that help; one run is mixed with its start (WiSE-FT).
    """
    started, processor, workdir = time.monotonic(), time.process_time(), need_workdir(arguments)
    folders = [Path(name) for name in arguments.options.input]
    missing = [str(folder) for folder in folders if not (folder / "config.json").is_file()]
    if missing or not folders:
        what = f"{', '.join(missing)} is no folder of a run." if missing else "No run is named."
        raise UserError(f"{what} Give --input=runs/A --input=runs/B, and --workdir for the result.")
    if workdir.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--workdir is {workdir}, which is one of the runs; name another folder for the result.")
    configs = {str(f): json.loads((f / "config.json").read_text(encoding="utf8"))["config"] for f in folders}
    from tljax.assembly import soup
    from tljax.assembly.experiment import build
    from tljax.train.display import Display

    display = Display()
    soup.same_model(configs)
    experiments = {name: build(config, data_dir=arguments.data_dir) for name, config in configs.items()}
    first = next(iter(experiments.values()))
    if "validation" not in first.sources:
        raise UserError("config.data has no `validation`, by which a mean would be chosen.")
    parts = {name: soup.trained(each, Path(name), say=display.say) for name, each in experiments.items()}
    if len(parts) == 1:
        tried = soup.with_start(first, next(iter(parts.values())))
    else:
        tried = (soup.greedy if arguments.options.greedy else soup.uniform)(first, parts)
    seconds = {"seconds": time.monotonic() - started, "processor_seconds": time.process_time() - processor}
    soup.keep(first, tried[-1], workdir, seconds)
    display.metrics("validation", {each.name: each.numbers for each in tried})
    display.say(f"{tried[-1].name} is in {workdir}; evaluate, predict and export read it as any run.")
    return 0
