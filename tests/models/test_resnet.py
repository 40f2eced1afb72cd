"""ResNet against transformers, in inference and in training."""

import jax
import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.models.forward import forward
from tljax.models.resnet import FAMILY, configure

TINY = dict(embedding_size=8, hidden_sizes=[8, 12, 20, 28], depths=[1, 2, 1, 1], layer_type="basic")

UNUSUAL = {
    "basic": {},
    "basic, downsampled at once": dict(downsample_in_first_stage=True),
    "basic, other widths": dict(embedding_size=6, num_channels=1, depths=[2, 1, 1, 2]),
    "bottleneck": dict(layer_type="bottleneck"),
    "bottleneck, all flags": dict(
        layer_type="bottleneck", downsample_in_bottleneck=True, downsample_in_first_stage=True, num_channels=4
    ),
    "two stages, gelu": dict(layer_type="bottleneck", hidden_sizes=[8, 16], depths=[2, 2], hidden_act="gelu"),
}


def reference(cls, entries: dict):
    torch.manual_seed(0)
    theirs = cls(ResNetConfig(**entries)).eval()
    random_norms(theirs)
    return theirs


def images(channels: int = 3, count: int = 2) -> np.ndarray:
    """Not square, and odd, so that every stride meets a border."""
    return np.random.default_rng(0).normal(size=(count, 75, 58, channels)).astype(np.float32)


def torch_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("case", UNUSUAL)
def test_equals_the_reference(case):
    entries = {**TINY, **UNUSUAL[case], "num_labels": 3}
    name = "ResNetForImageClassification"
    theirs = reference(ResNetForImageClassification, entries)
    model = make_model("resnet", entries, name)
    variables = import_weights(model, theirs.state_dict(), prefix="resnet.", architecture=name)
    pixels = images(entries.get("num_channels", 3))
    ours = run(model, variables, {"pixel_values": pixels})
    with torch.no_grad():
        wanted = theirs(torch_images(pixels), output_hidden_states=True)
        base = theirs.resnet(torch_images(pixels))
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == len(entries["depths"]) + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["hidden"], base.last_hidden_state) <= 1e-5
    assert distance(ours["pooled"], base.pooler_output[:, :, 0, 0]) <= 1e-5
    assert distance(ours["logits"], wanted.logits) <= 1e-5


def test_two_training_steps_move_statistics_as_torch_does():
    entries = {**TINY, "hidden_sizes": [8, 16], "depths": [1, 2]}
    theirs = reference(ResNetModel, entries)
    model = make_model("resnet", entries)
    variables = import_weights(model, theirs.state_dict())
    theirs.train()
    step = jax.jit(lambda v, x: forward(model, v, {"pixel_values": x}, train=model.backbone.stages))
    for seed in (0, 1):
        pixels = images(count=3) + seed
        outputs, updates = step(variables, pixels)
        variables = {**variables, **updates}
        wanted = theirs(torch_images(pixels))
        assert distance(outputs["hidden"], wanted.last_hidden_state) <= 1e-5
    after = import_weights(model, theirs.state_dict())["batch_stats"]
    pairs = zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(after), strict=True)
    assert all(np.abs(a - b).max() / np.abs(b).max() <= 1e-5 for a, b in pairs)


def test_statistics_move_only_where_a_stage_trains():
    entries = {**TINY, "hidden_sizes": [8, 16], "depths": [1, 1]}
    model = make_model("resnet", entries)
    variables = import_weights(model, reference(ResNetModel, entries).state_dict())
    step = jax.jit(lambda v, x: forward(model, v, {"pixel_values": x}, train=("stage1_block0",)))
    _, updates = step(variables, images())
    before, after = variables["batch_stats"]["backbone"], updates["batch_stats"]["backbone"]
    assert set(before) == set(after)
    for stage in before:
        same = jax.tree.leaves(jax.tree.map(np.array_equal, before[stage], after[stage]))
        assert not any(same) if stage == "stage1_block0" else all(same)


def test_channels_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="num_channels"):
        FAMILY.start(configure({}), {"pixel_values": np.zeros((1, 8, 8, 1))})
    with pytest.raises(UserError, match=r"reads `pixel_values`.*input_ids"):
        FAMILY.start(configure({}), {"input_ids": np.zeros((1, 8))})
    with pytest.raises(UserError, match="Did you mean 'bottleneck'"):
        configure({"layer_type": "bottlenek"})
    with pytest.raises(UserError, match="equally long"):
        configure({"depths": [1, 2]})


def test_defaults_are_those_of_transformers():
    theirs, ours = ResNetConfig(), configure({})
    for name in ours.__dataclass_fields__:
        value = getattr(theirs, name)
        assert getattr(ours, name) == (tuple(value) if isinstance(value, list) else value), name
