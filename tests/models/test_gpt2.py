"""GPT-2 against transformers."""

import jax
import numpy as np
import pytest

from tests.models.causal import GPT2, apart, prompts, theirs_on, twins
from tests.models.reference import make_model, run
from tljax.base.errors import UserError
from tljax.models import get_family
from tljax.models.gpt2 import FAMILY, configure

CASES = {
    "narrow, relu, untied": dict(n_inner=7, activation_function="relu", tie_word_embeddings=False),
    "scaled by layer, epsilon": dict(scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=0.1, n_head=1),
    "unscaled": dict(scale_attn_weights=False, n_head=12, n_layer=3),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    entries = CASES[case]
    theirs, model, variables = twins("gpt2", **entries)
    inputs = prompts()
    ours = run(model, variables, inputs)
    wanted = theirs_on(theirs, inputs, output_hidden_states=True)
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == model.config.n_layer + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert apart(a, b, inputs["attention_mask"]) <= 1e-5
    assert apart(ours["logits"], wanted.logits, inputs["attention_mask"]) <= 1e-5
    assert model.head.tied != ("head" in variables["params"])


def test_defaults_are_those_of_transformers():
    from transformers import GPT2Config

    theirs, ours = GPT2Config(), configure({})
    for name in ours.__dataclass_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert configure(GPT2Config(**GPT2).to_dict()) == configure(GPT2)


def test_dropout_moves_only_training_stages():
    _, model, variables = twins("gpt2", n_head=1, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=0.1)
    inputs = prompts()
    still = run(model, variables, inputs)["hidden_states"]
    moved = run(model, variables, inputs, train=("block1",), rngs={"dropout": jax.random.key(0)})["hidden_states"]
    assert np.array_equal(still[1], moved[1])
    assert not np.allclose(still[2], moved[2])


def test_kernels_that_add_to_the_stream_start_smaller_with_depth():
    deep = {"n_layer": 8, "n_embd": 16, "n_head": 2, "n_inner": 500}
    model = make_model("gpt2", {**deep, "vocab_size": 10, "n_positions": 8, "initializer_range": 0.1})
    init = model.config.residual_init
    assert np.std(init(jax.random.key(0), (500, 16))) == pytest.approx(0.88 * 0.1 / 4, rel=0.05)


def test_what_is_not_implemented_is_refused_by_name():
    with pytest.raises(UserError, match="n_embd 24 is no multiple of 5 heads"):
        configure({**GPT2, "n_head": 5})
    with pytest.raises(UserError, match=r"n_inner is 3\.5; it must be a whole number"):
        configure({**GPT2, "n_inner": 3.5})
    with pytest.raises(UserError, match="add_cross_attention is True"):
        configure({**GPT2, "add_cross_attention": True})


def test_published_sizes():
    for variant, entries in get_family("gpt2").variants.items():
        assert FAMILY.configure(entries).n_embd == entries["n_embd"], variant
