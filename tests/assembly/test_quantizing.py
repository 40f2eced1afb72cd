"""Runs on a tiny BERT whose frozen kernels are held in few bits: bytes, outputs, what is saved and exported."""

import jax
import numpy as np
import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.experiment import build
from tljax.assembly.phases import split_leaves
from tljax.assembly.quantizing import quantized_leaves
from tljax.assembly.training import trained_variables
from tljax.base.errors import UserError
from tljax.base.paths import flatten, unflatten
from tljax.base.types import Quantization
from tljax.cli.config import load_config
from tljax.cli.main import main
from tljax.models.forward import forward
from tljax.models.quantized import with_kernels

LORA = {"lora": {"rank": 2, "dora": True}}
KERNELS = 4 * 64 * 64 + 2 * 64 * 128
"""Of a block of the tiny BERT of this file."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantizing")
    save_tiny_bert(folder / "bert", hidden_size=64, intermediate_size=128, initializer_range=0.2)
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return load_config(folder / "config.py")


@pytest.mark.parametrize(
    ("options", "each"),
    [({"kind": "int8"}, 1 / 4 + 1 / 64), ({"kind": "nf4"}, 1 / 8 + 1 / 64), ({"double": True}, None)],
    ids=str,
)
def test_the_frozen_half_of_the_state_takes_the_bytes_of_the_bits(config, options, each):
    from tljax.assembly.training import summary

    whole, small = (build({**config, "strategy": {**LORA, **more}}) for more in ({}, {"quantize": options}))
    bytes_of = lambda e: sum(x.nbytes for x in split_leaves(e)[1].values())  # noqa: E731
    # The norm of a row of 128 inputs has a scale for every 64 of them; of int8 one for all.
    share = (4 * KERNELS * 2 - (bytes_of(whole) - bytes_of(small))) / (4 * KERNELS * 2)
    if each is None:
        assert 1 / 8 < share < 1 / 7.5
    else:
        assert share == pytest.approx(each, rel=0.05)
    totals = [summary(e)["total"] for e in (whole, small)]
    assert totals[0]["parameters"] == totals[1]["parameters"] and totals[0]["live"] == totals[1]["live"]
    assert totals[0]["parameter_bytes"] - totals[1]["parameter_bytes"] == bytes_of(whole) - bytes_of(small)


def test_a_run_trains_beside_the_bits_and_exports_what_it_trained(folder, config, tmp_path, capsys):
    import torch
    from transformers import AutoModel

    workdir, strategy = tmp_path / "run", {**LORA, "quantize": {"kind": "nf4"}}
    options = [f"--config.strategy={strategy}", "--config.train.steps=3", "--config.task.pool=own"]
    assert main(["train", f"--config={folder / 'config.py'}", f"--workdir={workdir}", *options]) == 0
    assert main(["export", f"--workdir={workdir}"]) == 0
    assert "held kernels in nf4: they are exported as the run used them" in capsys.readouterr().err
    assert main(["export", f"--workdir={workdir}", "--adapter"]) == 0
    assert "held kernels in nf4: the adapter is made for these" in capsys.readouterr().err

    chosen = {**config, "strategy": strategy, "task": {**config["task"], "pool": "own"}}
    experiment = build({**chosen, "train": {**config["train"], "steps": 3}})
    variables, _ = trained_variables(experiment, workdir, say=print)
    before, after = flatten(experiment.variables["params"]), flatten(variables["params"])
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved <= experiment.plan.live(0) and any("lora/b" in path for path in moved)
    held = {path for path in after if "/quantized/" in path}
    assert len(held) == 2 * 6 * 2 and all(before[path] is after[path] for path in held)

    ids = np.array([[2, 5, 7, 9, 3], [2, 11, 12, 3, 0]], np.int32)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32), "token_type_ids": np.zeros_like(ids)}
    ours = forward(experiment.model._replace(head=None), variables, inputs)[0]["hidden"]
    theirs = AutoModel.from_pretrained(workdir / "export").eval()
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x).long() for name, x in inputs.items()}).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, atol=2e-5)


def test_the_first_outputs_are_those_of_the_rounded_checkpoint(config):
    experiment = build({**config, "strategy": {**LORA, "quantize": {"kind": "int8"}}})
    plain = build({**config, "strategy": LORA})
    rounded = unflatten(with_kernels(flatten(experiment.variables["params"])))
    inputs = {"input_ids": np.array([[2, 5, 7, 9, 3]], np.int32)}
    run = jax.jit(lambda params: forward(plain.model, {**plain.variables, "params": params}, inputs)[0]["hidden"])
    found, expected, exact = (run(p) for p in (experiment.variables["params"], rounded, plain.variables["params"]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 1e-3 < np.abs(found - exact).max() < 0.2


def test_values_lie_on_a_mesh_as_the_kernel_would(config):
    changed = {**config, "mesh": {"fsdp": 2, "tensor": 2}}
    whole, small = (split_leaves(build({**changed, "strategy": {**LORA, **q}}))[1] for q in ({}, {"quantize": {}}))
    for name in ("attention/query", "mlp/down"):
        kernel, values = whole[f"backbone/block0/{name}/kernel"], small[f"backbone/block0/{name}/quantized/nf4"]
        assert values.sharding.spec == kernel.sharding.spec and any(kernel.sharding.spec)


def test_kernels_that_do_not_suit_are_named_or_left_out(config):
    experiment = build({**config, "strategy": {"linear_probe": {}}})
    model, variables = experiment.model, experiment.variables
    norm, query = "backbone/block0/mlp/norm/scale", "backbone/block0/attention/query/kernel"
    with pytest.raises(UserError, match=rf"{norm} is not the kernel of a layer"):
        quantized_leaves(model, variables, {norm: Quantization("int8", named=True)})
    assert quantized_leaves(model, variables, {p: Quantization("int8") for p in (norm, query)}).keys() == {query}
    with pytest.raises(UserError, match="The blocks of the bert have no kernel of a dense layer"):
        quantized_leaves(model, variables, {norm: Quantization("int8")})
