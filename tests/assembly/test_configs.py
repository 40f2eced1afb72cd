"""Every config is traced; the configs that need real data or weights read them from TLJAX_DATA and TLJAX_WEIGHTS."""

from pathlib import Path

import jax
import pytest

from tljax.assembly.experiment import build
from tljax.assembly.running import evaluation_batches, placed, predictor
from tljax.assembly.shapes import described
from tljax.assembly.training import batch_shapes, inspect_experiment, training, training_batches
from tljax.cli.config import load_config
from tljax.models import get_family

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.py"))
EMBEDDED = ("quickstart",)  # needs nothing that is not installed


def _build(path: Path, request, **sections):
    if path.stem not in EMBEDDED:
        request.getfixturevalue("data_dir")
        request.getfixturevalue("weights_dir")
    config = {**load_config(path), "mesh": {"data": 1}}
    return build({**config, **sections})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_built_and_traced(path, request):
    text = path.read_text()
    assert all(word in text for word in ("python launch.py", "Expected", "Cost")), "the docstring says how and what"
    model = load_config(path)["model"]
    if model.get("variant") and str(model.get("source")).startswith("hf:"):
        _traced_from_shapes(path)
        return
    if str(model.get("source")).startswith(("hf:", "runs/")):
        return  # the hub, or another run's export: what can be told without it is that the config can be read
    experiment = _build(path, request)
    name = next(iter(experiment.sources))
    batch = next(iter(evaluation_batches(experiment, name)))
    predictions = jax.eval_shape(predictor(experiment), *placed(experiment), batch)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(predictions)} <= {batch["weight"].shape[0]}
    if set(experiment.method.streams) <= set(experiment.sources) and experiment.config.get("optim"):
        parts = training(experiment)
        batches = next(training_batches(experiment, 0))
        state, metrics = jax.eval_shape(parts.step, parts.state, parts.frozen, batches, parts.key)
        before = jax.tree.map(lambda x: (x.shape, x.dtype), parts.state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
        assert metrics["loss"].shape == ()


def _traced_from_shapes(path: Path) -> None:
    """The step of a model of the hub, by its published shapes, with two layers: the others are equal to them."""
    config = load_config(path)
    model = config["model"]
    entries = {**get_family(model["family"]).variants[model["variant"]], "num_hidden_layers": 2}
    config = {**config, "model": {**model, "variant": entries}, "mesh": {"data": 2, "fsdp": 2}}
    experiment = described(config)
    parts = training(experiment)
    state, metrics = jax.eval_shape(parts.step, parts.state, parts.frozen, batch_shapes(experiment), parts.key)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(state) == shapes(parts.state) and metrics["loss"].shape == ()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((parts.state, parts.frozen)))


def test_the_linear_probe_costs_a_forward_pass(request):
    path = next(p for p in CONFIGS if p.stem == "quickstart")
    experiment = _build(path, request, strategy={"linear_probe": {}})
    found = inspect_experiment(experiment)
    assert found["flops"]["step"] <= 1.05 * found["flops"]["forward"]
    assert found["total"]["gradient_bytes"] == found["total"]["live"] * 4 == (384 * 8 + 8) * 4
    whole = inspect_experiment(_build(path, request))
    assert whole["flops"]["step"] > 2.5 * whole["flops"]["forward"]
