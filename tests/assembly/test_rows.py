"""Under fsdp what a stage hands on is split by examples: said in the program, and seen in what each device holds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny import save_config, save_csv, save_tiny_bert, train_steps
from tljax.assembly.rows import rows_stay
from tljax.cli.config import load_config
from tljax.sharding import make_mesh


class Stage(nn.Module):
    """A dense layer on `hidden`, or nothing."""

    works: bool = True

    @nn.compact
    def __call__(self, carry):
        return {**carry, "hidden": nn.Dense(8)(carry["hidden"])} if self.works else dict(carry)


def constraints(mesh, rows, works=True):
    """The specs that the program of a stage says of its results."""
    x = jnp.ones((rows, 3, 8))
    variables = Stage(works).init(jax.random.key(0), {"hidden": x})

    def run(variables, x):
        with rows_stay(mesh):
            return Stage(works).apply(variables, {"hidden": x, "mask": x[..., 0]})

    equations = jax.make_jaxpr(run)(variables, x).jaxpr.eqns
    return [e.params["sharding"].spec for e in equations if e.primitive.name == "sharding_constraint"]


def test_examples_stay_and_the_other_axes_are_free():
    free = PartitionSpec.UNCONSTRAINED
    assert constraints(make_mesh(data=2, fsdp=2), 8) == [PartitionSpec(("data", "fsdp"), free, free)]
    assert constraints(make_mesh(fsdp=4), 8) == [PartitionSpec(("fsdp",), free, free)]


def test_nothing_is_said_where_there_is_no_choice():
    assert constraints(make_mesh(data=4), 8) == constraints(None, 8) == []
    assert constraints(make_mesh(fsdp=4), 6) == [], "6 rows are not split over 4 devices"
    assert constraints(make_mesh(fsdp=4), 8, works=False) == []


def test_what_is_handed_on_as_it_is_stays_the_same_object():
    x, module = jnp.ones((4, 2, 8)), Stage(works=False)
    with rows_stay(make_mesh(fsdp=4)):
        assert module.apply({}, {"hidden": x})["hidden"] is x


class Words(nn.Module):
    """A table of vectors, and a residual layer on them."""

    @nn.compact
    def __call__(self, carry):
        return {"hidden": nn.Embed(48, 64, name="table")(carry["ids"])}


class Residual(nn.Module):
    @nn.compact
    def __call__(self, carry):
        x = carry["hidden"]
        return {**carry, "hidden": x + nn.Dense(64, use_bias=False)(jnp.tanh(nn.Dense(256, use_bias=False)(x)))}


class Tower(nn.Module):
    @nn.compact
    def __call__(self, carry):
        carry = Words(name="words")(carry)
        for i in range(2):
            carry = Residual(name=f"block{i}")(carry)
        return carry["hidden"]


def test_no_device_works_on_the_whole_batch():
    """Kernels larger than the batch: without a word XLA splits activations by their width and not by examples."""
    mesh, tower, rows = make_mesh(fsdp=4), Tower(), 8
    ids = jax.ShapeDtypeStruct((rows, 4), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), {"ids": ids})

    def split(path, leaf):
        spec = PartitionSpec(None, "fsdp") if "embedding" in str(path) else PartitionSpec("fsdp", None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    def holds_all_rows(said):
        """Whether a device holds the inner activations, 256 wide, of the whole batch."""

        def loss(variables, ids):
            with rows_stay(said):
                return jnp.square(tower.apply(variables, {"ids": ids})).sum()

        placed = jax.tree_util.tree_map_with_path(split, shapes)
        text = jax.jit(jax.grad(loss)).lower(placed, ids).compile().as_text()
        return any(shape in text for shape in ("f32[8,4,256]", "f32[32,256]"))

    assert holds_all_rows(None) and not holds_all_rows(mesh)


def test_a_run_has_the_losses_of_one_device(tmp_path):
    save_tiny_bert(tmp_path / "bert", initializer_range=0.3)
    config = load_config(save_config(tmp_path / "config.py", tmp_path / "bert", save_csv(tmp_path / "data.csv")))
    config["train"] |= {"remat": "stages", "scan": True}
    config["optim"] = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    one, four = (train_steps({**config, "mesh": mesh}, 3)[1] for mesh in ({"data": 1}, {"data": 2, "fsdp": 2}))
    assert four == pytest.approx(one, rel=2e-5)
