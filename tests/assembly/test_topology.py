"""A step compiled for 16 TPU chips that are not there: its memory and collectives against arithmetic."""

import importlib.util
import json

import jax
import pytest

from tests.tiny import TINY_BERT, save_config, save_csv, save_tiny_bert
from tljax.assembly.chips import CHIPS, EXAMPLES, GIB
from tljax.assembly.hlo import Collective
from tljax.assembly.topology import Topology, estimate, inspect_topology, open_topology
from tljax.base.errors import UserError
from tljax.cli.config import load_config
from tljax.cli.main import OK, RUN_ERROR, USER_ERROR, main

WIDTH, HIDDEN, WORDS, POSITIONS, TOKENS = 128, 256, 32, 32, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topology")
    save_tiny_bert(folder / "bert", hidden_size=WIDTH, intermediate_size=HIDDEN)
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder


def test_chips_with_the_whole_model_add_up_its_gradients(folder):
    config = load_config(folder / "config.py")
    config = {**config, "train": {**config["train"], "batch_size": 32}, "mesh": {"data": -1}}
    found = inspect_topology(config, "v5e:4x4")
    assert (found["devices"], found["mesh"], found["batch"], found["loops"]) == (16, {"data": 16}, 32, 0)
    live, memory = found["total"]["live"], found["memory"]
    assert live == found["total"]["parameters"] > 250_000
    # Masters and the two means of adam, on every chip; the rest of the arguments is a batch and counters.
    assert 12 * live < memory["arguments"] < 12 * live + 20_000
    assert 12 * live <= memory["aliased"] <= memory["outputs"], "the step writes its state where it read it"
    assert memory["hbm"] == 16 * GIB
    # Gradients in float32, and a few sums; of the positions only those that are used have one.
    (reduced,) = [each for each in found["collectives"] if each.kind == "all-reduce"]
    gradients = 4 * (live - (POSITIONS - TOKENS) * WIDTH)
    assert gradients <= reduced.bytes < gradients + 100
    assert reduced.group == 16 and reduced.sent == pytest.approx(2 * reduced.bytes * 15 / 16)
    assert sum(each.bytes for each in found["collectives"]) == reduced.bytes
    # The state is read and written; what else passes through the memory of so small a step is little.
    assert 2 * 12 * live < found["moved"] < 1.2 * 2 * 12 * live
    # A product for each kernel and token, forward and back by both sides, and those of the attention.
    block = 4 * WIDTH**2 + 2 * WIDTH * HIDDEN
    products = 3 * 2 * 32 * TOKENS * 2 * (block + 2 * TOKENS * WIDTH) + 2 * 2 * 32 * WIDTH * 2
    assert found["flops"]["step"] == found["flops"]["model"] == pytest.approx(products, rel=0.02)


def test_the_command_line_compiles_shards_of_what_is_not_there(folder, tmp_path, capsys):
    variant = {**TINY_BERT, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "vocab_size": 64}
    model = {"source": "hf:nobody/nothing", "family": "bert", "variant": variant}
    texts = {"source": "synthetic:text:words=40,count=64", "processor": {"max_length": TOKENS}}
    options = [
        f"--config.model={model}",
        f"--config.data={ {'train': texts} }",
        "--config.mesh={'fsdp': -1}",
        "--config.train.batch_size=16",
        f"--output={tmp_path / 'found.json'}",
    ]
    assert main(["inspect", f"--config={folder / 'config.py'}", "--topology=v5e:4x4", *options]) == OK
    shown, found = " ".join(capsys.readouterr().err.split()), json.loads((tmp_path / "found.json").read_text())
    assert "compiled for v5e:4x4 in" in shown and "memory of a device: " in shown and "estimated step" in shown
    # Kernels and tables that 16 divides lie in 16 parts, with their two means; norms and biases are whole.
    live, kernels = found["total"]["live"], 2 * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    mine = found["total"]["parameter_bytes"]
    assert 4 * (live - kernels) / 16 < mine < 4 * (live - kernels) + 4 * kernels / 16 + 1
    assert 3 * mine <= found["memory"]["arguments"] < 3.5 * mine, "small arrays are padded"
    # A step needs each kernel whole, and its gradient from all: 15 of 16 parts come from elsewhere, or go there.
    assert sum(each["sent"] for each in found["collectives"]) > 4 * kernels * 15 / 16


@pytest.mark.long
def test_two_slices_exchange_gradients_once_over_the_network_between_them(folder):
    config = load_config(folder / "config.py")
    config = {**config, "train": {**config["train"], "batch_size": 32}}
    with pytest.raises(UserError, match="they are of 2 slices"):
        inspect_topology({**config, "mesh": {"data": -1}}, "v5e:2x2", slices=2)
    mesh = {"data": 2, "fsdp": 4, "dcn": {"data": 2}}
    found = inspect_topology({**config, "mesh": mesh}, "v5e:2x2", slices=2)
    assert (found["devices"], found["mesh"], found["slices"]) == (8, {"data": 2, "fsdp": 4}, 2)
    # Within a slice each device gets the sum of its quarter of the gradient; this alone goes to the other slice. Norms
    # and biases are whole on each device, and what is split over them may go by quarters too.
    live, kernels = found["total"]["live"], 2 * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    sent = sum(each.sent for each in found["collectives"] if each.kind == "send")
    assert 4 * kernels / 4 <= sent < 4 * (kernels / 4 + live - kernels)
    assert found["time"]["links"] is None


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("v5p-16", "There is no chip 'v5p-16'"),
        ("v9:2x2", "Accepted: tpu7x, v4, v5e, v5p, v6e"),
        ("v5e", "says no shape"),
        ("v5e:3x5", "libtpu knows no topology 'v5e:3x5'"),
    ],
)
def test_wrong_names_are_answered_with_examples(name, named, folder, capsys):
    assert main(["inspect", f"--config={folder / 'config.py'}", f"--topology={name}"]) == USER_ERROR
    message = capsys.readouterr().err
    assert named in message and all(example in message for example in EXAMPLES)


def test_without_libtpu_the_message_says_how(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tljax\[topology\]"):
        open_topology("v5e:4x4")


def test_what_does_not_fit_is_said_with_the_cures(folder, monkeypatch, capsys):
    def refuse(lowered, *arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM: 31.22G of 15.75G\nsee there")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    options = ["--config.train.batch_size=16", "--config.mesh={'data': -1}", "--topology=v5e:4x4"]
    assert main(["inspect", f"--config={folder / 'config.py'}", *options]) == RUN_ERROR
    message = capsys.readouterr().err
    assert "31.22G of 15.75G" in message and "accumulate" in message and "see there" not in message


def test_the_estimate_is_a_roofline():
    topology = Topology("v5e:4x4", CHIPS["v5e"], (), 1)
    count = {"step": 16 * 197e12 * 0.4, "model": 16 * 197e12 * 0.3}
    memory = {"arguments": 2 * 819e9, "outputs": 0}
    traffic = {"moved": 0.1 * 819e9, "collectives": [Collective("all-reduce", 16, 1, 1e9, 0.5 * 200e9)]}
    found = estimate(topology, 16, count, memory, traffic)
    assert found == pytest.approx(
        {"arithmetic": 0.4, "memory": 0.1, "links": 0.5, "step": 0.5, "apart": 1.0, "mfu": 0.3 / 0.5}
    )
    # Without the text of the program, memory is what arguments and results take, and links are not guessed.
    blind = estimate(topology, 16, count, memory, {"moved": None, "collectives": None})
    assert blind["links"] is None and blind["memory"] == blind["step"] == pytest.approx(2) and blind["apart"] == 2.4
    # Two devices share a chip of tpu7x.
    halves = estimate(
        Topology("tpu7x:2x2x1", CHIPS["tpu7x"], (), 2), 8, {"step": 8 * 2307e12 / 2, "model": 1.0}, memory, traffic
    )
    assert halves["arithmetic"] == pytest.approx(1)
