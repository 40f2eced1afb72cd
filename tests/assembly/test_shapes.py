"""A description is what the run would be, by shapes, dtypes and shardings; and nothing is read or computed for it."""

import jax
import numpy as np
import pytest

from tests.tiny import TINY_BERT, save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.shapes import described
from tljax.assembly.training import batch_shapes, training, training_batches
from tljax.base.errors import UserError
from tljax.base.types import Method
from tljax.checkpoints import load
from tljax.cli.config import load_config

STRATEGIES = {
    "fine_tune": {"fine_tune": {}},
    "lora": {"lora": {"rank": 2, "dropout": 0.1}, "layer_decay": {"rate": 0.8}},
    "phases": {"gradual_unfreezing": {"every": 4, "unit": "steps"}, "l2_sp": {"strength": 0.1}, "ema": {"decay": 0.9}},
    "quantized": {"lora": {"rank": 2}, "quantize": {"kind": "nf4", "double": True}},
    "scratch": {"scratch": {}, "mixout": {"probability": 0.5}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    save_tiny_bert(folder / "bert")
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return {**load_config(folder / "config.py"), "mesh": {"data": 2, "fsdp": 2}}


def placed(tree):
    """Shapes, dtypes and shardings of arrays or shapes."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_description_is_placed_as_the_run_is(config, name, monkeypatch):
    config = {**config, "strategy": STRATEGIES[name]}
    real = training(build(config))

    def read(*arguments, **options):
        raise AssertionError("the weights are read")

    monkeypatch.setattr(load, "import_leaves", read)
    told = training(described(config))
    assert [phase.start for phase in told.phases] == [phase.start for phase in real.phases]
    for mine, theirs in zip(told.phases, real.phases, strict=True):
        assert placed(mine.frozen) == placed(theirs.frozen)
        assert placed(mine.shapes) == placed(theirs.shapes)
    assert placed(told.state) == placed(real.state) and placed(told.key) == placed(real.key)
    leaves = jax.tree.leaves((told.state, told.phases[0].frozen))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_a_method_with_a_teacher_and_a_state(config):
    config = {**config, "method": {"name": "delta"}, "task": {"name": "classification", "pool": "cls"}}
    real, told = build(config), described(config)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)  # noqa: E731
    assert shapes(told.variables["params"]) == shapes(real.variables["params"])
    assert "teacher" in told.variables["params"]


def test_the_batch_is_told_from_one_example(config):
    lengths = {"processor": {"max_length": 24, "lengths": (8, 24)}}
    experiment = build({**config, "data": {"train": {**config["data"]["train"], **lengths}}})
    real, told = next(training_batches(experiment, 0)), batch_shapes(experiment)
    assert jax.tree.structure(real) == jax.tree.structure(told)
    assert {k: x.shape for k, x in told["train"]["inputs"].items()} == dict.fromkeys(real["train"]["inputs"], (8, 24))
    for name in ("weight", "index", "targets"):
        mine, theirs = told["train"][name], real["train"][name]
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


def test_a_variant_stands_for_a_checkpoint_that_is_not_here(config):
    data = {"source": "synthetic:text:words=40,classes=3,count=16", "processor": {"max_length": 16, "lengths": (16,)}}
    model = {"source": "hf:nobody/nothing", "family": "bert", "variant": {**TINY_BERT, "vocab_size": 64}}
    experiment = described({**config, "model": model, "data": {"train": data}})
    assert experiment.variables["params"]["backbone"]["embed"]["words"]["embedding"].shape == (64, 16)
    assert experiment.variables["params"]["head"]["out"]["kernel"].shape == (16, 3)
    assert batch_shapes(experiment)["train"]["inputs"]["input_ids"].shape == (8, 16)
    with pytest.raises(UserError, match="nobody"):
        described({**config, "model": {**model, "variant": None}, "data": {"train": data}})


def peeking(forward, task):
    """A method whose first state depends on a value."""
    return Method(loss=lambda *arguments: {}, init=lambda rng, shapes: ({}, {"big": float(jax.random.normal(rng)) > 0}))


def test_what_needs_values_is_refused_with_the_reason(config):
    config = {**config, "method": {"name": "tests.assembly.test_shapes:peeking"}}
    assert isinstance(build(config).method_state["big"], bool)
    with pytest.raises(UserError, match=r"knows their shapes only\. ConcretizationTypeError"):
        described(config)
