"""A step compiled for 16 TPU chips that are not there: its memory and collectives against arithmetic."""


import pytest

from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.assembly.topology import inspect_topology
from tljax.cli.config import load_config

CHIPS_OF_SLICE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topology")
    save_tiny_bert(folder / "bert", hidden_size=128, intermediate_size=256)
    save_config(folder / "config.py", folder / "bert", save_csv(folder / "data.csv"))
    return folder


def of_kind(found, kind):
    return [each for each in found["collectives"] if each.kind == kind]


def test_chips_that_have_the_whole_model_add_up_its_gradients(folder):
    config = load_config(folder / "config.py")
    config = {**config, "train": {**config["train"], "batch_size": 32}, "mesh": {"data": -1}}
    found = inspect_topology(config, "v5e:4x4")
    assert found["devices"] == CHIPS_OF_SLICE and found["mesh"] == {"data": 16} and found["loops"] == 0
    live = found["total"]["live"]
    assert live == found["total"]["parameters"] > 300_000
    # Masters and the two means of adam, on every chip; the rest of the arguments are a batch and counters.
    assert 3 * 4 * live < found["memory"]["arguments"] < 1.1 * 3 * 4 * live
    assert found["memory"]["aliased"] > 0.99 * 3 * 4 * live, "the step writes its state where it read it"
    (reduced,) = of_kind(found, "all-reduce")
    assert 4 * live <= reduced.bytes < 1.01 * 4 * live, "gradients in float32, and a few sums"
    assert reduced.group == CHIPS_OF_SLICE and reduced.sent == pytest.approx(2 * reduced.bytes * 15 / 16)
    assert not of_kind(found, "all-gather") or of_kind(found, "all-gather")[0].bytes < 0.01 * 4 * live
    assert found["flops"]["step"] == found["flops"]["model"] > 0
