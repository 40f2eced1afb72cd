"""Prefixes, prompts and visual prompts: what a model with them computes, by hand or by the reference."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.causal import prompts, twins
from tests.models.reference import import_weights, make_model, random_norms, run
from tests.tiny import TINY_BERT, TINY_T5
from tljax.base.errors import UserError
from tljax.base.paths import flatten, sibling, unflatten
from tljax.models.forward import forward, init_variables
from tljax.models.generation import generate
from tljax.models.layers import Dense, attention
from tljax.strategies.prefix import prefix
from tljax.strategies.prompt import prompt
from tljax.strategies.visual_prompt import visual_prompt

COUNT = 3
GENERATOR = np.random.default_rng(0)
BERT = {**TINY_BERT, "initializer_range": 0.3}
T5 = {**TINY_T5, "initializer_factor": 0.7}


def adapted(variables, plan, deviation=0.5):
    """`variables` with the leaves of `plan` at random values; places stay ones."""
    flat, generator, made = flatten(variables["params"]), np.random.default_rng(1), {}
    for path, (adapter,) in plan(tuple(flat)).adapters.items():
        for name, leaf in adapter.init(jax.random.key(0), flat[path]).items():
            moved = 0 if name in adapter.frozen else generator.normal(0, deviation, leaf.shape)
            made[sibling(path, name)] = jnp.asarray(leaf + moved, jnp.float32)
    return {**variables, "params": unflatten({**flat, **made})}


def with_prefix(variables, **options):
    return adapted(variables, lambda paths: prefix((), paths, length=COUNT, **options))


def with_prompt(variables, deviation=0.5):
    return adapted(variables, lambda paths: prompt((), paths, length=COUNT), deviation)


def random_model(family, entries, head=None):
    return _random_model(family, tuple(entries.items()), head)


@functools.cache
def _random_model(family, entries, head):
    model = make_model(family, dict(entries), head)
    return model, jax.jit(lambda: init_variables(model, jax.random.key(0)))()


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


# --- prefixes


class Net(nn.Module):
    """An attention in which several heads share keys, with a mask and a bias."""

    @nn.compact
    def __call__(self, x, mask, bias):
        k, v = (Dense(6, name=name)(x).reshape(*x.shape[:2], 2, 3) for name in ("key", "value"))
        return attention(x.reshape(*x.shape[:2], 2, 3), k, v, mask, bias=bias, module=self)


def test_a_prefix_is_keys_and_values_before_those_of_the_tokens():
    x = GENERATOR.normal(size=(2, 4, 6)).astype(np.float32)
    seen = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    bias = GENERATOR.normal(size=(1, 2, 4, 4)).astype(np.float32)
    params = jax.tree.map(np.asarray, dict(Net().init(jax.random.key(0), x, None, None)["params"]))
    mine = {name: GENERATOR.normal(size=(COUNT, 6)).astype(np.float32) for name in ("key", "value")}
    tree = {name: {**params[name], "prefix": {"vectors": mine[name]}} for name in mine}
    apply = jax.jit(lambda tree, x, mask, bias: Net().apply({"params": tree}, x, mask, bias))
    made = {name: x @ params[name]["kernel"] + params[name]["bias"] for name in mine}
    expected = np.zeros((2, 4, 2, 3), np.float32)
    for b in range(2):
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            k, v = (np.concatenate([mine[name], made[name][b][seen[b]]])[:, part] for name in ("key", "value"))
            added = np.pad(bias[0, head][:, seen[b]], ((0, 0), (COUNT, 0)))
            expected[b, :, head] = softmax(x[b, :, part] @ k.T / 3**0.5 + added) @ v
    np.testing.assert_allclose(apply(tree, x, seen[:, None, None], bias), expected, atol=1e-5)
    # A mask of one column is a mask of all.
    every = apply(tree, x, np.ones((2, 1, 1, 1), bool), None)
    np.testing.assert_allclose(every, apply(tree, x, None, None), atol=1e-6)
    with pytest.raises(UserError, match="prefix of its keys alone"):
        Net().apply({"params": {**tree, "value": params["value"]}}, x, None, None)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_positions_of_a_table_begin_after_the_prefix(family):
    if family == "bert":
        model, variables = random_model("bert", BERT)
    else:
        _, model, variables = twins("gpt2")
    inputs = {"input_ids": np.array([[2, 7, 9, 11, 3]]), "attention_mask": np.ones((1, 5), np.int32)}
    flat = flatten(with_prefix(variables)["params"])
    table = flat["backbone/embed/positions/embedding"]
    moved = {path: leaf for path, leaf in flat.items() if not path.endswith("places")}
    moved["backbone/embed/positions/embedding"] = jnp.roll(table, -COUNT, axis=0)
    found = run(model, {**variables, "params": unflatten(flat)}, inputs)["hidden"]
    expected = run(model, {**variables, "params": unflatten(moved)}, inputs)["hidden"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    where = {**inputs, **{name: np.ones((1, len(table) - COUNT + 1), np.int32) for name in inputs}}
    with pytest.raises(UserError, match=rf"the prefix takes {COUNT} positions .*places=False"):
        forward(model, {**variables, "params": unflatten(flat)}, where)
    assert "backbone/embed/positions/prefix/places" not in flatten(with_prefix(variables, places=False)["params"])


def test_padding_changes_nothing_and_every_attention_has_its_own():
    model, variables = random_model("bert", BERT)
    with_it = with_prefix(variables)
    ids = np.array([[2, 7, 9, 3]])
    short = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    long = {name: np.pad(x, ((0, 0), (0, 2))) for name, x in short.items()}
    found = run(model, with_it, short)["hidden"]
    np.testing.assert_allclose(found, run(model, with_it, long)["hidden"][:, :4], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(forward(model, {**with_it, "params": p}, short)[0]["hidden"] ** 3)))
    moved = {path: leaf for path, leaf in flatten(gradient(with_it["params"])).items() if path.endswith("vectors")}
    assert len(moved) == 4 and all(np.abs(leaf).max() > 1e-3 for leaf in moved.values())


# --- both, in generation


@pytest.mark.parametrize("kind", [with_prefix, with_prompt])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoder_with_a_cache_writes_what_it_would_without(name, kind):
    _, model, variables = twins(name)
    variables, inputs = kind(variables), prompts(3, 6)
    asked = {key: jnp.asarray(inputs[key]) for key in ("input_ids", "attention_mask")}
    tokens = np.asarray(generate(model, variables, asked, max_new_tokens=4).tokens)
    assert (tokens != np.asarray(generate(model, twins(name)[2], asked, max_new_tokens=4).tokens)).any()
    mask = np.pad(inputs["attention_mask"], ((0, 0), (0, 4)), constant_values=1)
    whole = {
        "input_ids": np.concatenate([inputs["input_ids"], tokens], axis=1),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0),
    }
    logits = run(model, variables, whole)["logits"]
    np.testing.assert_array_equal(np.argmax(logits[:, 5:-1], axis=-1), tokens)


@pytest.mark.parametrize("kind", [with_prefix, with_prompt])
def test_t5_with_a_cache_writes_what_it_would_without(kind):
    model, plain = random_model("t5", T5, "T5ForConditionalGeneration")
    variables = kind(plain)
    inputs = {"input_ids": np.array([[4, 9, 7, 1], [5, 6, 1, 0]]), "attention_mask": np.array([[1] * 4, [1, 1, 1, 0]])}
    options = dict(max_new_tokens=4, decoder_start_token_id=0)
    tokens = np.asarray(generate(model, variables, inputs, **options).tokens)
    begun = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    outputs = run(model, variables, {**inputs, "decoder_input_ids": begun})
    np.testing.assert_array_equal(np.argmax(outputs["logits"], axis=-1), tokens)
    other = run(model, plain, {**inputs, "decoder_input_ids": begun})
    assert np.abs(outputs["logits"] - other["logits"]).max() > 0.05
    assert [x.shape for x in outputs["encoder_hidden_states"]] == [x.shape for x in other["encoder_hidden_states"]]


# --- prompts

FIRST = np.array([[8, 20, 5]])


def like_words(variables, path="backbone/embed/words"):
    """`variables` with a prompt that is the vectors of the words `FIRST`."""
    flat = flatten(variables["params"])
    flat[f"{path}/prompt/vectors"] = flat[f"{path}/embedding"][FIRST[0]]
    return {**variables, "params": unflatten(flat)}


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "t5_encoder"])
def test_a_prompt_of_words_is_these_words_before_the_text(family):
    if family in ("gpt2", "llama"):
        _, model, variables = twins(family)
    else:
        small = dict(vocab_size=32, dim=16, n_layers=2, n_heads=2, hidden_dim=24, initializer_range=0.3)
        entries = {"bert": BERT, "distilbert": small, "t5_encoder": T5}
        model, variables = random_model(family, entries[family])
    ids, mask = np.array([[4, 9, 7, 1], [5, 6, 1, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    path = "backbone/encoder/embed/words" if family == "t5_encoder" else "backbone/embed/words"
    found = run(model, like_words(variables, path), {"input_ids": ids, "attention_mask": mask})
    longer = {
        "input_ids": np.concatenate([np.repeat(FIRST, 2, 0), ids], axis=1),
        "attention_mask": np.pad(mask, ((0, 0), (COUNT, 0)), constant_values=1),
    }
    expected = run(model, variables, longer)
    names = {"hidden", "mask", "logits"} & expected.keys()
    assert found["hidden"].shape[:2] == found["mask"].shape == ids.shape
    for name in names:
        np.testing.assert_allclose(found[name], expected[name][:, COUNT:], atol=1e-5, err_msg=name)
    (states,) = (name for name in expected if name.endswith("hidden_states"))
    for a, b in zip(found[states], expected[states], strict=True):
        np.testing.assert_allclose(a, b[:, COUNT:], atol=1e-5)
    if family == "bert":
        np.testing.assert_allclose(found["pooled"], expected["pooled"], atol=1e-5)


def test_every_text_of_a_packed_row_stands_after_the_prompt():
    _, model, variables = twins("gpt2")
    variables = with_prompt(variables)
    texts = [np.array([[4, 9, 7, 6]]), np.array([[5, 6, 11]])]
    row = {
        "input_ids": np.concatenate([*texts, np.zeros((1, 1), int)], axis=1),
        "segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
    }
    row["attention_mask"] = (row["segment_ids"] > 0).astype(np.int32)
    found = run(model, variables, row)["logits"]
    for text, start in zip(texts, (0, 4), strict=True):
        alone = run(model, variables, {"input_ids": text})["logits"]
        np.testing.assert_allclose(found[:, start : start + text.shape[1]], alone, atol=1e-4)


def test_a_prompt_that_leaves_no_room_is_refused():
    model, variables = random_model("bert", BERT)
    inputs = {"input_ids": np.ones((1, 30), np.int32)}
    with pytest.raises(UserError, match="30 tokens, the prompt takes 3 positions before them, and the model has 32"):
        forward(model, with_prompt(variables), inputs)


def test_the_compute_dtype_stays():
    model, variables = random_model("bert", BERT)
    both = with_prefix(with_prompt(variables))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), both)
    inputs = {"input_ids": jnp.ones((1, 4), jnp.int32)}
    assert jax.eval_shape(lambda v: forward(model, v, inputs)[0]["hidden"], low).dtype == jnp.bfloat16


def test_the_first_values_of_a_prompt():
    table = jnp.asarray(GENERATOR.normal(0, 0.3, (50, 40)), jnp.bfloat16)
    paths = ("backbone/embed/words/embedding",)
    for start in ("vocabulary", "random"):
        (adapter,) = prompt((), paths, length=30, start=start).adapters[paths[0]]
        made = adapter.init(jax.random.key(3), table)["prompt/vectors"]
        assert made.shape == (30, 40) and made.dtype == jnp.float32
        words = {tuple(row) for row in np.asarray(table, np.float32).tolist()}
        assert all(tuple(row) in words for row in np.asarray(made).tolist()) == (start == "vocabulary")
        assert float(made.std()) == pytest.approx(0.3, rel=0.1)


# --- visual prompts


@pytest.mark.parametrize("family", ["vit", "deit"])
@pytest.mark.parametrize("deep", [False, True])
def test_visual_prompts_are_tokens_of_the_references_blocks(family, deep):
    import torch
    import transformers

    name = {"vit": "ViT", "deit": "DeiT"}[family]
    torch.manual_seed(0)
    entries = dict(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=12,
        patch_size=4,
        initializer_range=0.3,
    )
    theirs = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**entries)).eval()
    random_norms(theirs)
    model = make_model(family, theirs.config.to_dict())
    variables = adapted(
        import_weights(model, theirs.state_dict()), lambda paths: visual_prompt((), paths, length=COUNT, deep=deep)
    )
    pixels = GENERATOR.normal(size=(2, 12, 12, 3)).astype(np.float32)
    found = run(model, variables, {"pixel_values": pixels})
    flat = flatten(variables["params"])
    vectors = [flat.get(f"backbone/block{i}/attention/query/visual_prompt/vectors") for i in range(3)]
    assert [each is not None for each in vectors] == [True, deep, deep]
    with torch.no_grad():
        x = theirs.embeddings(torch.tensor(pixels.transpose(0, 3, 1, 2)))
        first = 1 if family == "vit" else 2
        head, rest, states = x[:, :first], x[:, first:], [x]
        for layer, own in zip(theirs.layers, vectors, strict=True):
            if own is not None:
                middle = torch.tensor(np.asarray(own)).expand(2, -1, -1)
            y = layer(torch.cat([head, middle, rest], dim=1))
            head, middle, rest = y.split([first, COUNT, rest.shape[1]], dim=1)
            states.append(torch.cat([head, rest], dim=1))
        last, states = theirs.layernorm(states[-1]).numpy(), [state.numpy() for state in states]
    assert len(states) == len(found["hidden_states"])
    for ours, wanted in zip(found["hidden_states"], states, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * float(np.abs(wanted).max()))
    np.testing.assert_allclose(found["hidden"], last, atol=2e-5)
    assert found["hidden"].shape == (2, first + 9, 24) and found["pyramid"][0].shape == (2, 3, 3, 24)
