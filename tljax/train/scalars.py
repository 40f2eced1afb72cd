"""Where a run can be watched while it goes on: TensorBoard always, Weights & Biases where the config says so."""

import json
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.errors import RunError, UserError
from tljax.base.files import write_whole
from tljax.base.processes import first
from tljax.train.records import plain


class Scalars(NamedTuple):
    """Somewhere to show numbers.

    Attributes:
      write: (step, {"train/loss": number}) → nothing.
      flush: () → nothing; hands over what was written.
      close: () → nothing.
    """

    write: Callable[[int, Mapping[str, float]], None] = lambda step, numbers: None
    flush: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


NOWHERE = Scalars()


def open_scalars(workdir: Path, *, config: Mapping[str, Any], start: int, project: str | None) -> Scalars:
    """TensorBoard's events in `workdir`, and a run of Weights & Biases.

    Of several processes the first one writes. They are views: what counts stands in metrics.jsonl.

    Args:
      workdir: the run folder.
      config: resolved, for Weights & Biases.
      start: steps done before; events of later ones, written by a run that was killed, are dropped.
      project: of Weights & Biases, or None.

    Raises:
      UserError: wandb is not installed.
      RunError: it does not start.
    """
    views = [_tensorboard(workdir / "tensorboard", start)]
    if project is not None and first():
        views.append(_weights_and_biases(workdir, config, start, project))

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for view in views:
            view.write(step, {name: value for name, value in numbers.items() if math.isfinite(value)})

    def each(name: str) -> Callable[[], None]:
        return lambda: [getattr(view, name)() for view in views] and None

    return Scalars(write, each("flush"), each("close"))


def _tensorboard(folder: Path, start: int) -> Scalars:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=start + 1, write_to_disk=first())

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Scalars(write, writer.flush, writer.close)


def _weights_and_biases(workdir: Path, config: Mapping[str, Any], start: int, project: str) -> Scalars:
    """A run of that project. One that continues here continues there: its name for it is kept in the run folder."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(
            f"config.train.wandb is {project!r}, and wandb is not installed: pip install 'tljax[wandb]'."
        ) from error
    path = workdir / "wandb" / "run.json"
    known = json.loads(path.read_text(encoding="utf8"))["id"] if start and path.is_file() else uuid.uuid4().hex[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"id": known}) + "\n")
    settings = {"project": project, "id": known, "name": workdir.resolve().name, "resume": "allow"}
    try:
        run = wandb.init(**settings, dir=str(workdir), config=plain(dict(config)))
    except wandb.Error as error:
        raise RunError(
            f"Weights & Biases does not start: {error} The variable WANDB_MODE=offline keeps the run in its folder."
        ) from error
    return Scalars(lambda step, numbers: run.log(dict(numbers), step=step), close=run.finish)
