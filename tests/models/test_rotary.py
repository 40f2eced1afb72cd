"""Rotary frequencies against transformers, at published sizes, and the two spellings of their config entries."""

import numpy as np
import pytest

from tljax.models import get_family
from tljax.models.rotary import frequencies, read_rope

LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
YARN = dict(factor=4.0, original_max_position_embeddings=32768)
CASES = {
    "default": dict(rope_type="default", rope_theta=5e5),
    "linear": dict(rope_type="linear", rope_theta=1e4, factor=2.5),
    "llama3": dict(rope_type="llama3", rope_theta=5e5, **LLAMA3),
    "yarn": dict(rope_type="yarn", rope_theta=1e6, **YARN),
    "yarn, everything": dict(
        rope_type="yarn",
        rope_theta=1e4,
        beta_fast=16,
        beta_slow=2,
        mscale=0.7,
        mscale_all_dim=1.3,
        truncate=False,
        **YARN,
    ),
    "yarn, attention factor": dict(rope_type="yarn", rope_theta=1e4, attention_factor=1.5, **YARN),
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_the_reference(case):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    entries = dict(hidden_size=512, num_attention_heads=4, max_position_embeddings=131072)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**entries, rope_parameters=dict(CASES[case])))
    parameters, faults = read_rope({"rope_parameters": CASES[case]}, positions=131072)
    ours, scale = frequencies(parameters, 128)
    assert faults == []
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=1e-6)
    assert abs(scale - theirs.attention_scaling) < 1e-7


def test_old_files_are_read():
    configure = get_family("llama").configure
    old = configure({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    assert old == configure({"rope_parameters": CASES["llama3"]})
    older = configure({"rope_scaling": {"type": "linear", "factor": 2.5}})
    assert older == configure({"rope_parameters": CASES["linear"]})
    assert configure({"rope_scaling": None, "rope_theta": 5e5}) == configure({"rope_parameters": CASES["default"]})
    assert configure({}).rope_parameters == {"rope_type": "default", "rope_theta": 1e4}


def test_the_length_before_stretching_is_the_models_where_none_is_given():
    given = {"rope_type": "yarn", "factor": 2.0}
    assert read_rope({"rope_parameters": given}, positions=77)[0]["original_max_position_embeddings"] == 77
    beside = {"rope_parameters": given, "original_max_position_embeddings": 55}
    assert read_rope(beside, positions=77)[0]["original_max_position_embeddings"] == 55


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not implemented"),
        ({"rope_type": "linar"}, "Did you mean 'linear'"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "llama3 needs high_freq_factor"),
        ({"rope_type": "linear", "factor": -1}, "factor is -1; it must be a number above 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("linear", "must be a table of entries"),
    ],
)
def test_wrong_parameters_are_named(given, message):
    assert any(message in fault for fault in read_rope({"rope_parameters": given}, positions=8)[1])
