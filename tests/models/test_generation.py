"""Generation against transformers' `generate`, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.causal import prompts, twins
from tljax.base.errors import UserError
from tljax.models import generation
from tljax.models.generation import generate
from tljax.models.heads import Embedding

NEW = 8
MODELS = {
    "gpt2": dict(vocab_size=20, initializer_range=0.5),
    "llama": dict(vocab_size=20, tie_word_embeddings=True),
    "mistral": dict(vocab_size=20, sliding_window=5, initializer_range=0.1),
}
# The ends are tokens that these random models come to after a few steps.
SEARCHES = {
    "greedy": ("gpt2", dict(eos_token_id=(2, 3))),
    "greedy, no end": ("mistral", {}),
    "beams": ("gpt2", dict(num_beams=3, eos_token_id=11)),
    "beams, window": ("mistral", dict(num_beams=3, eos_token_id=7)),
    "long texts": ("llama", dict(num_beams=3, eos_token_id=(7, 8), length_penalty=2.0)),
    "early": ("llama", dict(num_beams=4, eos_token_id=(15, 16, 17), early_stopping=True, length_penalty=0.5)),
    "never": ("llama", dict(num_beams=2, eos_token_id=8, early_stopping="never")),
    "short texts": ("llama", dict(num_beams=2, eos_token_id=2, early_stopping="never", length_penalty=-1.0)),
}


def texts() -> dict[str, jax.Array]:
    inputs = prompts(4, 7, vocabulary=20)
    return {name: jnp.asarray(inputs[name]) for name in ("input_ids", "attention_mask")}


def theirs(model, inputs: dict, **options):
    eos = options.pop("eos_token_id", None)
    options["eos_token_id"] = list(eos) if isinstance(eos, tuple) else eos
    result = model.generate(
        **{name: torch.tensor(np.asarray(x)).long() for name, x in inputs.items()},
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    tokens = result.sequences[:, inputs["input_ids"].shape[1] :].numpy()
    tokens = np.pad(tokens, ((0, 0), (0, NEW - tokens.shape[1])), constant_values=1)
    return tokens, getattr(result, "sequences_scores", None)


@pytest.mark.parametrize("search", SEARCHES)
def test_equals_the_reference(search):
    name, options = SEARCHES[search]
    reference, model, variables = twins(name, **MODELS[name])
    inputs = texts()
    tokens, scores = theirs(reference, inputs, **options)
    ours = generate(model, variables, inputs, max_new_tokens=NEW, pad_token_id=1, **options)
    assert np.array_equal(ours.tokens, tokens)
    if scores is not None:
        assert np.allclose(ours.scores, scores, atol=1e-4)
    ends = options.get("eos_token_id", ())
    ends = (ends,) if isinstance(ends, int) else ends
    assert not ends or len(set(ours.lengths.tolist())) > 2
    for row, length in zip(tokens, ours.lengths, strict=True):
        assert not np.isin(row[: length - 1], ends).any()
        assert length == NEW or (row[length - 1] in ends and np.all(row[length:] == 1))


def test_other_prompts_of_the_same_shape_compile_nothing():
    _, model, variables = twins("llama", **MODELS["llama"])
    before = generation._generate._cache_size()
    options = dict(max_new_tokens=3, rng=jax.random.key(0))
    for temperature, top_k, top_p, seed in ((0.5, 3, 1.0, 0), (1.5, 0, 0.5, 1)):
        inputs = texts()
        inputs["input_ids"] = (inputs["input_ids"] + seed) % 20
        generate(model, variables, inputs, temperature=temperature, top_k=top_k, top_p=top_p, **options)
    assert generation._generate._cache_size() == before + 1


def test_padding_on_the_right_is_moved_to_the_left():
    _, model, variables = twins("llama", **MODELS["llama"])
    inputs = texts()
    right = {name: [] for name in inputs}
    for ids, mask in zip(*(np.asarray(x) for x in inputs.values()), strict=True):
        order = np.argsort(mask == 0, kind="stable")
        right["input_ids"].append(ids[order])
        right["attention_mask"].append(mask[order])
    options = dict(max_new_tokens=NEW, pad_token_id=1, eos_token_id=(3, 4))
    expected = generate(model, variables, inputs, **options)
    found = generate(model, variables, {name: jnp.array(rows) for name, rows in right.items()}, **options)
    assert np.array_equal(found.tokens, expected.tokens) and np.array_equal(found.scores, expected.scores)


DRAW = jax.jit(generation._draw)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.6), (6, 0.7)])
def test_draws_have_the_distribution_of_the_reference(top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=(1, 12)).astype(np.float32) * 2
    warped = TemperatureLogitsWarper(0.7)(None, torch.from_numpy(logits))
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    wanted = torch.softmax(warped, -1)[0].numpy()
    count = 20_000
    many = jnp.repeat(jax.nn.log_softmax(logits), count, axis=0)
    tokens = DRAW(many, jax.random.key(0), temperature=0.7, top_k=top_k, top_p=top_p)
    found = np.bincount(np.asarray(tokens), minlength=12) / count
    assert np.all(found[wanted == 0] == 0)
    # Five standard errors.
    assert np.all(np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / count) + 1e-9)


def test_log_probabilities_can_be_adjusted():
    """A ban of the tokens that greedy search takes, and the logits of a lazy head."""
    _, model, variables = twins("llama", **MODELS["llama"])
    first = generate(model, variables, texts(), max_new_tokens=2).tokens[:, 0]

    def ban(scores, tokens, count):
        return scores.at[jnp.arange(4), first].set(-jnp.inf)

    lazy = model._replace(head=model.head.clone(lazy=True))
    tokens = generate(lazy, variables, texts(), max_new_tokens=2, adjust=ban).tokens
    assert not np.any(tokens == first[:, None])


def test_wrong_options_are_refused_all_at_once():
    _, model, variables = twins("llama", **MODELS["llama"])
    with pytest.raises(UserError) as error:
        generate(
            model,
            variables,
            {},
            max_new_tokens=0,
            num_beams=2,
            temperature=0.5,
            top_k=-1,
            top_p=0.0,
            early_stopping="yes",
        )
    message = str(error.value)
    for part in ("max_new_tokens is 0", "top_k is -1", "top_p is 0.0", "'yes'", "num_beams=1", "needs rng", "none"):
        assert part in message, part
    with pytest.raises(UserError, match="head is Embedding, and a LanguageModel is needed"):
        generate(model._replace(head=Embedding()), variables, texts(), max_new_tokens=1)
    with pytest.raises(UserError, match="'bert' is no decoder"):
        generate(model._replace(family="bert"), variables, texts(), max_new_tokens=1)
    with pytest.raises(UserError, match="67 tokens, and the model has 64 positions"):
        generate(model, variables, texts(), max_new_tokens=61)
    with pytest.raises(UserError, match=r"attention_mask has the shape \(4, 2\)"):
        generate(model, variables, {**texts(), "attention_mask": jnp.ones((4, 2))}, max_new_tokens=1)
