"""LLaMA, Mistral, Qwen2 and Qwen3 against transformers."""

import numpy as np
import pytest

from tests.models.causal import CLASSES, SIZES, apart, prompts, theirs_on, twins
from tests.models.reference import run
from tljax.base.errors import UserError
from tljax.models import get_family


def _rope(kind: str, **others):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 50.0, **others}}


LLAMA3 = _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=12)
CASES = {
    "llama, one key head, biases, tied": (
        "llama",
        dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rms_norm_eps=0.1),
    ),
    "llama, wide heads, llama3": ("llama", dict(head_dim=10, hidden_act="gelu_pytorch_tanh", **LLAMA3)),
    "llama, as many key heads, linear": ("llama", dict(num_key_value_heads=4, **_rope("linear", factor=3.0))),
    "mistral, window, yarn": (
        "mistral",
        dict(sliding_window=3, **_rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    ),
    "mistral, no window": ("mistral", dict(sliding_window=None, num_hidden_layers=1)),
    "qwen2, windows above": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=3, max_window_layers=1, tie_word_embeddings=True),
    ),
    "qwen3, biases, named layers": (
        "qwen3",
        dict(
            head_dim=8,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=2,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    name, entries = CASES[case]
    theirs, model, variables = twins(name, **entries)
    inputs = prompts()
    ours = run(model, variables, inputs)
    wanted = theirs_on(theirs, inputs, output_hidden_states=True)
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == model.config.num_hidden_layers + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert apart(a, b, inputs["attention_mask"]) <= 1e-5
    assert apart(ours["logits"], wanted.logits, inputs["attention_mask"]) <= 1e-5
    head = get_family(name).heads[CLASSES[name][1]]
    assert head.matches(model.head) and ours["pooled"] is None
    assert ("head" in variables["params"]) != bool(entries.get("tie_word_embeddings"))


def test_absent_inputs_have_the_defaults_of_the_reference():
    theirs, model, variables = twins("llama", tie_word_embeddings=True)
    inputs = {"input_ids": prompts()["input_ids"]}
    ours = run(model, variables, inputs)
    assert apart(ours["logits"], theirs_on(theirs, inputs).logits, np.ones((3, 9))) <= 1e-5
    assert np.all(ours["mask"] == 1)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_defaults_are_those_of_transformers(name):
    import transformers

    family = get_family(name)
    for entries in ({}, SIZES):
        theirs, ours = getattr(transformers, CLASSES[name][0])(**entries), family.configure(entries)
        assert family.configure(theirs.to_dict()).windows == ours.windows
        for field in ours.__dataclass_fields__:
            # transformers forgets the window where it is not used.
            if hasattr(theirs, field) and field not in ("sliding_window", "layer_types"):
                assert getattr(ours, field) == getattr(theirs, field), field


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_published_sizes_can_be_built(name):
    family = get_family(name)
    for variant, entries in family.variants.items():
        config = family.configure(entries)
        assert len(config.windows) == config.num_hidden_layers, variant
        assert config.rope_parameters["rope_theta"] >= 1e4


def test_what_is_not_implemented_is_refused_by_name():
    configure = get_family("qwen3").configure
    with pytest.raises(UserError, match=r"hidden_act is 'sillu'.*Did you mean 'silu'"):
        configure({**SIZES, "hidden_act": "sillu"})
    with pytest.raises(UserError, match="sliding_window is -1; it must be a whole number from 1"):
        configure({**SIZES, "sliding_window": -1})
    with pytest.raises(UserError) as error:
        configure(
            {
                **SIZES,
                "num_key_value_heads": 3,
                "head_dim": 7,
                "layer_types": ["full_attention", "sliding_atention", "full_attention"],
                "rope_scaling": {"type": "longrope"},
            }
        )
    message = str(error.value)
    assert "4 query heads are no multiple of the 3" in message and "size 7 is odd" in message
    assert "Did you mean 'sliding_attention'?" in message and "names 3 layers, and there are 2" in message
    assert "'longrope' is not implemented" in message and "Accepted: default, linear, llama3, yarn" in message
    with pytest.raises(UserError, match="hidden_size 24 is no multiple of 5 heads"):
        get_family("llama").configure({**SIZES, "num_attention_heads": 5, "num_key_value_heads": 5})
