"""What decoders share: texts in a row, the cache, grouped heads, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.causal import prompts, twins
from tests.models.reference import run
from tljax.base.errors import UserError
from tljax.models import decoders, get_family
from tljax.models.forward import forward
from tljax.models.layers import attention

KINDS = {"gpt2": dict(n_inner=7), "mistral": dict(sliding_window=3)}


@pytest.fixture(params=KINDS)
def model(request):
    """(our model, its variables)."""
    return twins(request.param, **KINDS[request.param])[1:]


def test_texts_in_a_row_equal_texts_alone(model):
    """Two texts of 5 and 3 tokens and a pad in one row, with and without positions of their own."""
    ids = np.random.default_rng(0).integers(0, 40, (1, 9)).astype(np.int32)
    segments, mask = np.array([[7] * 5 + [4] * 3 + [0]]), np.array([[1] * 8 + [0]])
    packed = {"input_ids": ids, "segment_ids": segments, "attention_mask": mask}
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0]])
    alone = [run(*model, {"input_ids": ids[:, a:b]})["logits"] for a, b in ((0, 5), (5, 8))]
    wanted = np.concatenate(alone, axis=1)
    for inputs in (packed, {**packed, "position_ids": positions}):
        logits = run(*model, inputs)["logits"][:, :8]
        assert np.abs(logits - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_cache_changes_nothing(model):
    """A prompt padded on the left at once, then three tokens, then one, equal all at once."""
    model, variables = model
    inputs = {name: jnp.asarray(x, jnp.int32) for name, x in prompts().items()}
    whole = run(model, variables, inputs)["logits"]
    cache = get_family(model.family).cache(model.config, 3, 12, jnp.float32)
    mask = jnp.pad(inputs["attention_mask"], ((0, 0), (0, 3)))
    step = jax.jit(lambda v, x: forward(model, v, x)[0])
    pieces = []
    for first, last in ((0, 5), (5, 8), (8, 9)):
        piece = {name: inputs[name][:, first:last] for name in ("input_ids", "position_ids")}
        outputs = step(variables, {**piece, "attention_mask": mask, "cache": cache, "cache_index": jnp.int32(first)})
        cache = outputs["cache"]
        pieces.append(outputs["logits"])
    weight = np.asarray(inputs["attention_mask"])[..., None]
    assert np.abs((jnp.concatenate(pieces, axis=1) - whole) * weight).max() <= 1e-5 * np.abs(whole).max()
    assert not any(np.any(leaf[:, 9:]) for leaf in cache.values())


def test_positions_follow_the_cache_where_none_are_given(model):
    model, _ = model
    family = get_family(model.family)
    cache = family.cache(model.config, 1, 8, jnp.float32)
    start = family.start(model.config, {"input_ids": np.ones((1, 2), int), "cache": cache, "cache_index": 3})
    assert np.array_equal(start["position_ids"], [[3, 4]]) and start["mask"].shape == (1, 8)


def test_grouped_heads_equal_repeated_ones():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, n, 3)) for i, n in enumerate((6, 2, 2)))
    mask = jnp.tril(jnp.ones((5, 5), bool))[None, None]
    wanted = attention(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2), mask)
    assert np.allclose(decoders.grouped_attention(q, k, v, mask), wanted, atol=1e-6)


def test_wrong_inputs_are_refused_all_at_once(model):
    model, _ = model
    family = get_family(model.family)
    with pytest.raises(UserError, match=r"reads `input_ids`.*pixel_values"):
        family.start(model.config, {"pixel_values": np.zeros((1, 2))})
    wrong = {"input_ids": np.zeros((2, 65), int), "attention_mask": np.ones((2, 3)), "position_ids": np.ones((1, 65))}
    with pytest.raises(UserError) as error:
        family.start(model.config, wrong)
    message = str(error.value)
    assert "attention_mask has the shape (2, 3), and (2, 65) is needed" in message
    assert "position_ids has the shape (1, 65)" in message and "65 tokens, and the model has 64 positions" in message
    packed = {"input_ids": np.zeros((1, 4), int), "segment_ids": np.zeros((1, 4), int), "cache_index": 0}
    with pytest.raises(UserError, match="with a cache there is one text a row"):
        family.start(model.config, {**packed, "cache": family.cache(model.config, 1, 4, jnp.float32)})


def test_tied_leaves_are_shared():
    tied, untied = (twins("mistral", sliding_window=3, tie_word_embeddings=t)[1].backbone for t in (True, False))
    assert tied.shared == {"embed/words/embedding": ("embed", "head")} and untied.shared == {}
