"""Running an experiment without training it: evaluation, prediction, the probe."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.assembly.experiment import Experiment
from tljax.assembly.placing import places
from tljax.assembly.rows import rows_stay
from tljax.base.choosing import chosen_by, merit
from tljax.base.errors import UserError
from tljax.base.paths import flatten, unflatten
from tljax.base.processes import parts, place
from tljax.base.tables import call
from tljax.base.types import Source, Task
from tljax.data.streams import eval_stream
from tljax.data.subsets import subset
from tljax.models.forward import forward
from tljax.models.heads import Classifier, Embedding
from tljax.sharding import batch_sharding, replicated, to_shards
from tljax.train import probe as probes
from tljax.train.evaluate import collect, measure
from tljax.train.step import KEEP_BARRIERS

ANSWERS = ("label", "tags", "answers", "target_text", "boxes", "labels", "mask")
"""What a record to predict for may hold and nobody reads."""
SHOWN = ("id", "text", "text_b", "tokens", "question")
"""What is repeated beside a prediction."""


def evaluation_batches(experiment: Experiment, name: str):
    """The finite batches of the data entry `name`, in order of length where that saves padding."""
    return batches_of(experiment, experiment.sources[name], experiment.processors[name])


def batches_of(experiment: Experiment, source: Source, processor: Any):
    """As `evaluation_batches`, of any prepared source."""
    size, shard = evaluation_size(experiment), parts(batch_sharding(experiment.mesh))
    return eval_stream(source, processor, batch_size=size, shard=shard)


def evaluation_size(experiment: Experiment) -> int:
    """Examples in a batch of an evaluation."""
    return experiment.settings.eval_batch_size or experiment.settings.batch_size


def compiler_options(experiment: Experiment) -> dict[str, Any] | None:
    """What XLA is told where parts are computed again, or not before their time."""
    barriers = experiment.settings.remat != "none" or experiment.plan.quantized
    return KEEP_BARRIERS.get(experiment.mesh.devices.flat[0].platform) if barriers else None


def predictor(experiment: Experiment, *, task: Task | None = None, head: Any = None) -> Callable[[Any, Any, Any], dict]:
    """Compiled (params, batch_stats, batch) → predictions of the task, or the outputs of another `head`.

    Args:
      experiment: its `task` is the default.
      task: one of several.
      head: instead of the model's.
    """
    model, task = experiment.model, task or experiment.task
    if head is not None:
        model = model._replace(head=head)

    @partial(jax.jit, compiler_options=compiler_options(experiment))
    def predict(params, batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        with rows_stay(experiment.mesh):
            if head is None and task.infer is not None:
                return task.infer(model, variables, batch)
            outputs, _ = forward(model, variables, task.inputs(batch))
        return {"embedding": outputs["embedding"]} if head is not None else task.predict(outputs)

    return predict


def placed(experiment: Experiment) -> tuple[dict, Any]:
    """(params in the compute dtype, running statistics) on the mesh, of the experiment as it stands."""
    params = put_leaves(experiment, flatten(experiment.variables["params"]), frozen=True)
    return unflatten(params), place(experiment.variables["batch_stats"], replicated(experiment.mesh))


def put_leaves(experiment: Experiment, leaves: Mapping[str, Any], *, frozen: bool = False) -> dict[str, Any]:
    """Flat leaves in their shards: float32 masters that a step may donate, or frozen ones in the compute dtype."""
    where = places(experiment.model.family, leaves, experiment.mesh, experiment.placement, frozen=frozen)
    compute = jnp.dtype(experiment.settings.compute_dtype)

    def dtype_of(leaf: Any) -> Any:
        return (compute if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype) if frozen else jnp.float32

    return {path: to_shards(leaf, where[path], dtype=dtype_of(leaf), own=not frozen) for path, leaf in leaves.items()}


def evaluate_as_is(
    experiment: Experiment, name: str, predict: Callable[[Any, Any, Any], dict] | None = None
) -> tuple[dict, dict, dict]:
    """(numbers, tables, predictions) of the experiment with its variables as they are on the data entry `name`.

    Args:
      experiment: with the variables to evaluate.
      name: of the entry.
      predict: the `predictor` of the entry's task, where one was compiled before.
    """
    task = experiment.task_of(name)
    run = partial(predict or predictor(experiment, task=task), *placed(experiment))
    predictions, targets, _ = collect(run, evaluation_batches(experiment, name), batch_sharding(experiment.mesh))
    return (*measure(task, predictions, targets, experiment.sources[name].records), predictions)


def predict_records(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dict an answer, with the record's `id`, its texts where it has some, and what the task decodes.

    Args:
      experiment: with trained variables.
      records: `text` (and `text_b`) or `image`; labels are not read.
    """
    unlabelled = [{key: value for key, value in record.items() if key not in ANSWERS} for record in records]
    source = Source(records=unlabelled, classes=experiment.classes, name="inputs")
    prepare = experiment.task.question or experiment.task.prepare
    source, processor = prepare(source, next(iter(experiment.readers.values())))
    batches = eval_stream(source, processor, batch_size=min(evaluation_size(experiment), len(source.records)))
    run = partial(predictor(experiment), *placed(experiment))
    predictions, _, _ = collect(run, batches, replicated(experiment.mesh))
    lines = experiment.task.decode(predictions, source.records)
    if len(lines) != len(records):
        return lines
    shown = [{key: record[key] for key in SHOWN if key in record} for record in records]
    return [{**asked, **line} for asked, line in zip(shown, lines, strict=True)]


def features_of(experiment: Experiment, name: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, D) in float32, labels (N,)) of at most `limit` examples of the data entry `name`, drawn by seed.

    Features are what the head reads of an example, one vector.

    Raises:
      UserError: the examples have no classes.
    """
    task, model = experiment.task_of(name), experiment.model
    if experiment.sources[name].classes is None:
        raise UserError(f"--features draws a map of classes, and config.data.{name} has none.")

    @jax.jit
    def read(variables, batch):
        outputs, _ = forward(model, variables, task.inputs(batch))
        return {"feature": task.feature(outputs).astype(jnp.float32)}

    params, batch_stats = placed(experiment)
    source = subset(experiment.sources[name], limit=limit, seed=experiment.seed)
    batches = batches_of(experiment, source, experiment.processors[name])
    run = partial(read, {"params": params, "batch_stats": batch_stats})
    found, labels, _ = collect(run, batches, batch_sharding(experiment.mesh))
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        raise UserError(f"--features draws a map of classes, and an example of config.data.{name} has several labels.")
    return found["feature"], labels


def run_probe(experiment: Experiment, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Linear probes on frozen features, once for each draw of `config.probe`.

    Args:
      experiment: its task's head says how features are pooled and whether they are normalised.
      splits: the data entries to measure on.

    Returns:
      one dict a draw, of the probe that `validation` chose where there are several: `name`, `metrics` and `tables` by
      split, `fit` (numbers on how it was fitted), `weights` of the head, and `grid`: name → numbers on validation.

    Raises:
      UserError: no classes, another head than a linear one, several probes and no `validation`.
    """
    settings = call(probes.Probe, (), experiment.config.get("probe"), where="config.probe")
    if experiment.classes is None:
        raise UserError("The probe is a classifier, and the data have no classes.")
    if not isinstance(experiment.model.head, Classifier):
        raise UserError(
            f"The probe is a linear classifier, and the task {experiment.task.name} has another head. "
            "Use config.task.name='classification'."
        )
    chooser = ("validation",) if "validation" in experiment.sources else ()
    features, labels = _features(experiment, dict.fromkeys(("train", *chooser, *splits)))

    def measured(weights: Mapping[str, Any], split: str) -> tuple[dict, dict]:
        probabilities = probes.predict(weights, features[split])
        predictions = {"probabilities": probabilities, "label": probabilities.argmax(-1).astype(np.int32)}
        return measure(experiment.task, predictions, labels[split], experiment.sources[split].records)

    by = chosen_by(experiment.task.main, experiment.settings.metric)
    results = []
    for rows in probes.draws(settings, labels["train"], experiment.seed):
        x, y = features["train"][rows], labels["train"][rows]
        inputs = probes.standardized(x, x)[0] if settings.standardize else x
        found = probes.candidates(settings, inputs, y, len(experiment.classes), seed=experiment.seed)
        if settings.standardize:
            found = [each._replace(weights=probes.unstandardized(each.weights, x)) for each in found]
        if len(found) > 1 and not chooser:
            raise UserError(
                f"config.probe asks for {len(found)} probes, and config.data has no `validation` to choose by."
            )
        grid = {each.name: measured(each.weights, "validation")[0] for each in found} if len(found) > 1 else {}
        chosen = max(found, key=lambda each: merit(*by, grid[each.name])) if grid else found[0]
        numbers = {split: measured(chosen.weights, split) for split in splits}
        metrics, tables = ({split: m[i] for split, m in numbers.items()} for i in (0, 1))
        shown = {"name": chosen.name, "metrics": metrics, "tables": tables, "fit": chosen.fit, "grid": grid}
        results.append({**shown, "weights": chosen.weights})
    return results


def _features(experiment: Experiment, names: Iterable[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(features (examples, D) by entry, labels by entry), as the head's linear layer reads them."""
    head = Embedding(pool=experiment.model.head.pool, normalize=experiment.model.head.normalize)
    run = partial(predictor(experiment, head=head), *placed(experiment))
    features, labels = {}, {}
    for name in names:
        batches = evaluation_batches(experiment, name)
        predictions, labels[name], _ = collect(run, batches, batch_sharding(experiment.mesh))
        features[name] = predictions["embedding"].astype(np.float32)
    return features, labels
