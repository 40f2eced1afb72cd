"""Several stored adapters of one base: each alone, and their weighted sum, in the kernels."""

import jax
import numpy as np
import pytest

from tests.tiny import save_tiny_bert
from tljax.assembly.model import make_model
from tljax.assembly.sections import ModelSection
from tljax.base.errors import UserError
from tljax.base.paths import flatten, sibling, unflatten
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.merging import merge_adapters
from tljax.checkpoints.peft_format import save_adapter
from tljax.models.adapters import added
from tljax.strategies.ia3 import ia3
from tljax.strategies.lora import lora


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(folder of a tiny BERT, name → folder of an adapter, name → its leaves)."""
    folder = tmp_path_factory.mktemp("merging")
    save_tiny_bert(folder / "bert")
    model, variables, _ = load_pretrained(str(folder / "bert"))
    flat, generator, leaves = flatten(variables["params"]), np.random.default_rng(0), {}
    plans = {
        "a": lora((), tuple(flat), rank=2, alpha=3.0),
        "b": lora((), tuple(flat), rank=5, targets=["query", "mlp/up|up"]),
        "c": ia3((), tuple(flat)),
    }
    for name, plan in plans.items():
        leaves[name] = {
            sibling(path, leaf): np.asarray(x + (leaf != "lora/scale") * generator.normal(0, 0.3, x.shape), np.float32)
            for path, mine in plan.adapters.items()
            for leaf, x in mine[0].init(jax.random.key(0), flat[path]).items()
        }
        tree = {**variables, "params": unflatten({**flat, **leaves[name]})}
        save_adapter(folder / name, model, tree, base=str(folder / "bert"))
    return folder, leaves


def test_the_kernels_hold_the_weighted_sum_of_what_each_changes(stored):
    folder, leaves = stored
    weights = {"a": 0.7, "b": -0.4, "c": 1.0}
    section = ModelSection(
        source=str(folder / "bert"), adapters=tuple((str(folder / name), weight) for name, weight in weights.items())
    )
    _, variables, _, _ = make_model(section, jax.random.key(0))
    _, before, _ = load_pretrained(str(folder / "bert"))
    before, after = flatten(before["params"]), flatten(variables["params"])
    assert after.keys() == before.keys()

    def change(name, module):
        kernel, mine = np.asarray(before[f"{module}/kernel"]), leaves[name]
        if f"{module}/lora/a" in mine:
            return added(kernel, {x: mine[f"{module}/lora/{x}"] for x in ("a", "b", "scale")}) - kernel
        output, inputs = mine.get(f"{module}/ia3/output"), mine.get(f"{module}/ia3/input")
        factor = output if output is not None else inputs[:, None] if inputs is not None else 1.0
        return kernel * factor - kernel

    modules = {path.removesuffix("/kernel") for path in before if path.endswith("/kernel") and "block" in path}
    moved = 0
    for module in modules:
        expected = before[f"{module}/kernel"] + sum(w * change(name, module) for name, w in weights.items())
        np.testing.assert_allclose(after[f"{module}/kernel"], expected, atol=1e-6, err_msg=module)
        moved += not np.array_equal(after[f"{module}/kernel"], before[f"{module}/kernel"])
    assert moved == 10, "queries, keys, values and both layers of the MLP, of two blocks"


def test_one_folder_is_that_adapter_and_none_is_the_base(stored):
    folder, leaves = stored
    model, variables, _ = load_pretrained(str(folder / "bert"))
    switched = flatten(merge_adapters(model, variables, str(folder / "a"))["params"])
    path = "backbone/block1/attention/query"
    mine = {x: leaves["a"][f"{path}/lora/{x}"] for x in ("a", "b", "scale")}
    kernel = flatten(variables["params"])[f"{path}/kernel"]
    np.testing.assert_allclose(switched[f"{path}/kernel"], added(np.asarray(kernel), mine), atol=1e-6)
    back = flatten(merge_adapters(model, variables, ())["params"])
    assert all(leaf is back[path] for path, leaf in flatten(variables["params"]).items())


def test_what_is_no_list_of_adapters_is_refused(stored, tmp_path):
    folder, _ = stored
    model, variables, _ = load_pretrained(str(folder / "bert"))
    with pytest.raises(UserError, match=r"\('a', 'much'\) is neither(.|\n)*\('b', nan\) is neither"):
        merge_adapters(model, variables, [("a", "much"), ("b", float("nan"))])
    with pytest.raises(UserError, match="holds no adapter of peft"):
        merge_adapters(model, variables, tmp_path)
