"""Several tasks on one backbone, each with its own head, data, loss and metrics."""

from collections.abc import Mapping
from typing import Any

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.tables import call, lookup
from tljax.base.types import Model, Task
from tljax.models.heads import Several
from tljax.tasks import TABLE
from tljax.tasks.spec import TaskSpec

PAIRED = ("similarity", "sentence_pairs", "contrastive")
"""Tasks whose inputs are two an example."""


def several(spec: TaskSpec, *, tasks: Mapping[str, Mapping[str, Any]]) -> Task:
    """Tasks that share a backbone (Caruana 1997); the method `multitask` trains them together.

    Every entry of `config.data` names its task in `task`, and the training data of the task NAME are the entry
    `train_NAME`. An entry is prepared, evaluated and decoded by its own task. The parameters of the head of NAME stand
    under `head/NAME/`. `config.data.validation`, of whichever task it is, chooses the checkpoint.

    Args:
      spec: needs `parts`: what each task may know of its own data.
      tasks: name → a section as `config.task`: dict(name="classification", pool="mean").

    Returns:
      A `Task` with `parts`. Predictions are {task: its predictions}, and a decoded line has a key for each task.

    Raises:
      UserError: no tasks, names that are no plain words, a task without data, or a task that cannot share: one that
        uses the checkpoint's own head, computes its head's start, or generates.
    """
    _check(spec, tasks)
    made = {name: _make(name, section, spec.parts[name]) for name, section in tasks.items()}
    raise_faults("Not every task can be one of several:", [line for name in made for line in _unfit(name, made, spec)])

    def decode(predictions, records):
        lines = {name: task.decode(predictions[name], records) for name, task in made.items()}
        return [dict(zip(lines, row, strict=True)) for row in zip(*lines.values(), strict=True)]

    return Task(
        name="several",
        head=Several(tuple((name, task.head) for name, task in made.items())),
        uses="pooled" if any(task.uses == "pooled" for task in made.values()) else "hidden",
        inputs=lambda batch: batch["inputs"],
        targets=_one_alone,
        loss=_one_alone,
        weights=_one_alone,
        predict=lambda outputs: {name: task.predict(outputs_of(outputs, name)) for name, task in made.items()},
        metrics=_one_alone,
        decode=decode,
        main=next(iter(made.values())).main,
        prepare=lambda source, processor: _prepare(made, source, processor),
        parts={name: _part(name, task) for name, task in made.items()},
    )


def outputs_of(outputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The outputs as a model with the head `name` alone has them."""
    shared = {key: x for key, x in outputs.items() if key != "heads"}
    return {**shared, **outputs["heads"][name]}


def with_one_head(model: Model, variables: Mapping[str, Any], name: str) -> tuple[Model, dict[str, Any]]:
    """(model, variables) with the head `name` alone, as `save_pretrained` writes them.

    Raises:
      UserError: the model has not several heads, or none of that name.
    """
    heads = dict(model.head.heads) if isinstance(model.head, Several) else {}
    if name not in heads:
        raise UserError(
            f"The model has no head called {name!r}; its heads are: {', '.join(heads) or '(one, unnamed)'}."
        )
    kept = {
        path.replace(f"head/{name}/", "head/", 1): leaf
        for path, leaf in flatten(variables["params"]).items()
        if not path.startswith("head/") or path.startswith(f"head/{name}/")
    }
    return model._replace(head=heads[name]), {**variables, "params": unflatten(kept)}


def _check(spec: TaskSpec, tasks: Mapping[str, Any]) -> None:
    faults = [] if tasks else ["it is empty. Give it dict(NAME=dict(name='classification'), …)."]
    faults += [
        f"{name!r} is no name for a task: use letters, digits and _." for name in tasks if not name.isidentifier()
    ]
    faults += [
        f"{name}: no entry of config.data has task={name!r}, so nothing is known of its data."
        for name in tasks
        if name not in spec.parts
    ]
    raise_faults("config.task.tasks cannot be used:", faults)


def _make(name: str, section: Mapping[str, Any], spec: TaskSpec) -> Task:
    options = dict(section)
    function = lookup(TABLE, options.pop("name", "classification"), what="task")
    try:
        return call(function, (spec,), options, where=f"config.task.tasks.{name}")
    except UserError as error:
        raise UserError(f"config.task.tasks.{name}: {error}") from error


def _unfit(name: str, made: Mapping[str, Task], spec: TaskSpec) -> list[str]:
    task, faults = made[name], []
    if task.parts:
        faults.append(f"{name} is itself several tasks. Name them all in one section.")
    elif task.infer is not None:
        faults.append(f"{name} ({task.name}) generates or reads more than one forward pass gives.")
    elif task.head is None or task.own_head or task.head is spec.head:
        faults.append(f"{name} ({task.name}) uses the checkpoint's own head. Give it a new one (head='new').")
    elif task.fill is not None:
        faults.append(f"{name} ({task.name}) computes how its head starts.")
    return faults


def _part(name: str, task: Task) -> Task:
    """`task`, reading the outputs of a model with several heads."""
    own = {
        "predict": lambda outputs: task.predict(outputs_of(outputs, name)),
        "loss": lambda outputs, targets: task.loss(outputs_of(outputs, name), targets),
    }
    if task.feature is not None:
        own["feature"] = lambda outputs: task.feature(outputs_of(outputs, name))
    return task._replace(**own)


def _prepare(made: Mapping[str, Task], source: Any, processor: Any) -> tuple[Any, Any]:
    """Records that belong to no one task, to be predicted for by all, are read as they are."""
    plain = Task._field_defaults["prepare"]
    others = [name for name, task in made.items() if task.prepare is not plain or task.name in PAIRED]
    if others:
        raise UserError(
            f"{', '.join(others)}: these tasks prepare their records in ways of their own, or read pairs, so that no "
            "record can be predicted for by all tasks. Evaluate the entries of config.data, or keep one head "
            "(tljax.tasks.several.with_one_head)."
        )
    return source, processor


def _one_alone(*_: Any) -> Any:
    raise UserError(
        "config.task.name='several' has a loss and metrics for each task and none for all. Train it with "
        "config.method.name='multitask', and let every entry of config.data name its task."
    )
