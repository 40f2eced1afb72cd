"""What a method is given: `forward`, a teacher, streams that are there."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from tljax import methods
from tljax.assembly.model import make_model
from tljax.assembly.rows import rows_stay
from tljax.assembly.sections import Entry, ModelSection
from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import call, lookup
from tljax.base.types import Method, Model, Task
from tljax.checkpoints.adapt import output_shapes
from tljax.models.adapters import DROPOUT
from tljax.models.forward import forward, recorded_stages
from tljax.models.heads import pool


def with_feature_shape(task: Task, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a model's outputs, with that of the task's `feature`; None where there is none."""
    feature = jax.eval_shape(task.feature, shapes) if shapes.get("hidden") is not None else None
    return {**shapes, "feature": feature}


def with_feature(task: Task) -> Task:
    """`task` with a vector an example: its own, else the mean."""
    return task if task.feature is not None else task._replace(feature=partial(pool, how="mean"))


START = "start"
"""In the place of a section `teacher`: the checkpoint of `config.model`, as it was before it was trained."""


def teacher_of(
    section: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    make: Callable[..., tuple] = make_model,
) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """(`config.method` with a function in place of its section `teacher`, the teacher's wing of the tree or None).

    Args:
      section: `config.method`.
      start: `config.model`.
      make: what makes models.

    Raises:
      UserError: a model without a checkpoint where the teacher is the start.
    """
    name = section.get("name", "supervised")
    option = inspect.signature(lookup(methods.TABLE, name, what="method")).parameters.get("teacher")
    given = section.get("teacher", option.default if option else None)
    if given == START:
        given = start or {}
        if given.get("source") is None:
            raise UserError(
                f"The method {name} keeps the model near its start, and config.model.source names no checkpoint: "
                "random values are nothing to stay near. Name one, or one in config.method.teacher."
            )
    if not isinstance(given, Mapping):
        return section, None
    model, variables, _, _ = make(call(ModelSection, (), given, where="config.method.teacher"), jax.random.key(0))

    def teacher(params: Mapping[str, Any], inputs: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        return forward(model, params["teacher"], inputs, **options)[0]

    teacher.shapes = output_shapes(model, hidden_states=True)
    teacher.stages = tuple(stage for stage in recorded_stages(model) if "/" not in stage)
    wing = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return {**section, "teacher": teacher}, wing


def objective_of(
    config: Mapping[str, Any],
    task: Task,
    *,
    remat: bool = False,
    mesh: Mesh | None = None,
    make: Callable[..., tuple] = make_model,
) -> tuple[Callable[[Model, tuple[str, ...]], Method], dict[str, Any] | None]:
    """((model, stages in training mode) → the method of `config.method`, the teacher's wing of the tree or None).

    With `remat` the gradient of the backbone's stages keeps only what goes into each. `mesh` is that of the run, and
    `make` makes the teacher.
    """
    section, teacher = teacher_of(config.get("method") or {}, config.get("model"), make)
    options = dict(section)
    function = lookup(methods.TABLE, options.pop("name", "supervised"), what="method")

    def made(model: Model, train_stages: tuple[str, ...]) -> Method:
        run = make_forward(model, train_stages, remat=remat, mesh=mesh)
        return call(function, (run, task), options, where="config.method")

    return made, teacher


def check_streams(method: Method, section: Mapping[str, Any] | None, entries: Mapping[str, Entry]) -> None:
    """The data entries that the method reads must be there, with the views that it needs."""
    name = (section or {}).get("name", "supervised")
    first = ("train",) if "train" in method.streams else tuple(method.streams)
    if not any(stream in entries for stream in first):  # an evaluation, a prediction: nothing is trained
        return
    faults = []
    for stream, kind in method.streams.items():
        if stream not in entries:
            faults.append(f"it reads config.data.{stream} ({kind}). The entries are: {', '.join(entries)}.")
            continue
        given = entries[stream].views or {}
        missing = [view for view in method.views.get(stream, ()) if view not in given]
        if missing:
            faults.append(
                f"it compares random views, and config.data.{stream}.views has no {' and no '.join(missing)}; it has: "
                f"{', '.join(given) or 'none'}. Each is a dict of augmentations, such as dict(flip=True, crop=4)."
            )
    raise_faults(f"The method {name} cannot be used with these data:", faults)


def check_head(method: Method, section: Mapping[str, Any] | None, fresh: bool) -> None:
    """A method that goes on with a trained head is not given a new one."""
    if method.trained_head and fresh:
        raise UserError(
            f"The method {section['name']} goes on with a classifier that was trained before, and this head is new. "
            "Name a checkpoint with a classifier in config.model.source (the export of a run on the source), and set "
            "config.task.head='own'."
        )


def make_forward(
    model: Model, train_stages: tuple[str, ...], *, remat: bool = False, mesh: Mesh | None = None
) -> Callable:
    """What a method calls: (params, state, inputs, rng, *, train, hidden_states) → (outputs, state)."""

    def run(params, state, inputs, rng, *, train=True, hidden_states=False):
        with rows_stay(mesh):
            outputs, updates = forward(
                model,
                {"params": params, "batch_stats": state["batch_stats"]},
                inputs,
                # A survey has none; those of the adapters are there in training mode alone.
                rngs=None if rng is None else {"dropout": rng, **({DROPOUT: rng} if train else {})},
                train=train_stages if train else (),
                hidden_states=hidden_states,
                remat=remat,
            )
        return outputs, {**state, **updates}

    return run
