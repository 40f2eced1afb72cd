"""XLNet against transformers: both streams, orders, segments, memory; heads; what a token must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.models.reference import import_weights, make_model, run
from tljax.base.errors import UserError
from tljax.models.forward import forward
from tljax.models.xlnet import configure
from tljax.models.xlnet_inputs import empty_memory, start

TINY = dict(vocab_size=40, d_model=24, n_layer=2, n_head=3, d_inner=20, initializer_range=0.3)
TOKENS, TARGETS = 9, 4


def twins(**changes):
    """(transformers' model with random norms and biases, ours, our variables); both with language-model heads."""
    cls = "XLNetLMHeadModel"
    torch.manual_seed(0)
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for path, leaf in theirs.named_parameters():
            if "norm" in path or path.endswith("bias"):
                leaf.uniform_(0.5, 1.5) if path.endswith("norm.weight") else leaf.uniform_(-0.3, 0.3)
    model = make_model("xlnet", theirs.config.to_dict(), cls)
    return theirs, model, import_weights(model, theirs.state_dict(), prefix="transformer.", architecture=cls)


def texts(batch=4, *, mask=True, streams=True, types=True, memory=0, layers=2):
    """Left-padded texts with an order in which some tokens are to be predicted, in our convention."""
    generator = np.random.default_rng(0)
    start = np.array([0, 3, 1, 5])[:batch, None]
    inputs = {"input_ids": generator.integers(0, 40, (batch, TOKENS))}
    if mask:
        inputs["attention_mask"] = (np.arange(TOKENS) >= start).astype(np.int32)
    if types:
        inputs["token_type_ids"] = generator.integers(0, 3, (batch, TOKENS))
    if streams:
        inputs["perm_mask"] = generator.integers(0, 2, (batch, TOKENS, TOKENS))
        # The last row asks for two places, and one of them twice: the reference adds.
        places = np.stack([generator.permutation(TOKENS)[:TARGETS] for _ in range(batch)])
        inputs["target_mapping"] = np.eye(TOKENS, dtype=np.int32)[places]
        inputs["target_mapping"][:, -1, 0] = 1
    if memory:
        inputs["mems"] = tuple(generator.normal(size=(batch, memory, 24)).astype(np.float32) for _ in range(layers))
    return inputs


def theirs_on(theirs, inputs, **options):
    """Its outputs as NumPy arrays with the batch in front; `content` is the tuple of the content stream's states."""
    if theirs.config.attn_type == "uni" and "attention_mask" in inputs and len(inputs["input_ids"]) > 1:
        # The reference adds the mask of a batch in place to that of one text, which torch refuses.
        each = [
            theirs_on(theirs, jax.tree.map(lambda x, i=i: x[i : i + 1], inputs), **options)
            for i in range(len(inputs["input_ids"]))
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *each)
    given = {name: torch.tensor(np.asarray(x)) for name, x in inputs.items() if name != "mems"}
    for name in ("perm_mask", "target_mapping", "attention_mask"):
        if name in given:
            given[name] = given[name].float()
    if "mems" in inputs:
        given["mems"] = [torch.tensor(np.asarray(x)).transpose(0, 1) for x in inputs["mems"]]
    with torch.no_grad():
        found = theirs(**given, output_hidden_states=True, **options)
    states = [x.numpy() for x in found.hidden_states]
    outputs = {"hidden": states[-1], "content": tuple(states[::2] if "target_mapping" in inputs else states)}
    outputs["mems"] = tuple(x.transpose(0, 1).numpy() for x in found.mems)
    return {**outputs, "logits": found.logits.numpy()}


def apart(ours, theirs):
    """max|a − b| / max|b|."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


CASES = {
    "one stream, nothing given": (dict(n_layer=1, n_head=1), dict(streams=False, types=False, mask=False)),
    "two streams": (dict(ff_activation="gelu_new"), dict(types=False)),
    "memory, clamped": (dict(clamp_len=3, ff_activation="relu", layer_norm_eps=0.1), dict(memory=5)),
    "one direction": (dict(attn_type="uni", mem_len=7), dict(streams=False, memory=4, batch=2)),
    "same length, untied": (
        dict(attn_type="uni", same_length=True, tie_word_embeddings=False, n_layer=1),
        dict(memory=4, batch=2),
    ),
    "both directions": (dict(bi_data=True, clamp_len=4, reuse_len=6, mem_len=8), dict(memory=3)),
    "one direction of both": (
        dict(bi_data=True, attn_type="uni", n_head=4, n_layer=1),
        dict(mask=False, streams=False, memory=3),
    ),
    "memory without limit": (dict(mem_len=0, reuse_len=5, n_layer=1), dict(memory=3, streams=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    changes, given = CASES[case]
    theirs, model, variables = twins(**changes)
    inputs = texts(layers=model.config.n_layer, **given)
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    assert len(ours["hidden_states"]) == len(wanted["content"]) == model.config.n_layer + 1
    for a, b in zip(ours["hidden_states"], wanted["content"], strict=True):
        assert apart(a, b) <= 1e-5
    assert apart(ours["hidden"], wanted["hidden"]) <= 1e-5
    assert apart(ours["logits"], wanted["logits"]) <= 1e-5
    assert ("mems" in ours) == ("mems" in inputs)
    for a, b in zip(ours.get("mems", {}).values(), wanted["mems"] if "mems" in ours else (), strict=True):
        assert apart(a, b) <= 1e-5


def test_memory_equals_the_longer_text_in_one_direction():
    """A token that sees only what is before it cannot tell memory from text."""
    _, model, variables = twins(attn_type="uni", mem_len=None)
    ids = np.random.default_rng(1).integers(0, 40, (2, 11))
    whole = run(model, variables, {"input_ids": ids})["hidden_states"]
    mems = empty_memory(model.config, 2)
    for first, last in ((0, 4), (4, 11)):
        part = run(model, variables, {"input_ids": ids[:, first:last], "mems": mems})
        mems = part["mems"]
        for a, b in zip(part["hidden_states"], whole, strict=True):
            assert apart(a, b[:, first:last]) <= 1e-5
    assert [m.shape for m in mems.values()] == [(2, 11, 24)] * 2
    for a, b in zip(mems.values(), whole[:-1], strict=True):
        assert apart(a, b) <= 1e-5


def test_memory_is_a_constant():
    """The gradient of a loss does not reach into the text before (Dai et al. 2019)."""
    _, model, variables = twins(n_layer=1)
    inputs = {"input_ids": jnp.ones((2, 4), int), "mems": {"block0": jnp.ones((2, 3, 24))}}

    def of_memory(params):
        return jnp.sum(forward(model, {**variables, "params": params}, inputs)[0]["mems"]["block0"])

    assert not any(np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(of_memory))(variables["params"])))


def test_dropout_moves_only_training_stages():
    _, model, variables = twins(ff_activation="gelu_new")
    inputs = texts(types=False)
    still = run(model, variables, inputs)
    moved = run(model, variables, inputs, train=("block1",), rngs={"dropout": jax.random.key(0)})
    assert np.array_equal(still["hidden_states"][1], moved["hidden_states"][1])
    assert not np.allclose(still["hidden_states"][2], moved["hidden_states"][2])
    assert not np.allclose(still["hidden"], moved["hidden"])


def test_defaults_are_those_of_transformers():
    theirs, ours = transformers.XLNetConfig(), configure({})
    for name in ours.__dataclass_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert configure(transformers.XLNetConfig(**TINY).to_dict()) == configure(TINY)
    assert configure({"n_token": 7, "hidden_size": 32, "mem_len": None}) == configure(
        {"vocab_size": 7, "d_model": 32, "mem_len": None}
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_head": 5}, "d_model 24 is no multiple of 5 heads"),
        ({"d_head": 4}, "d_head is 4; with 3 heads on d_model 24 it is 8"),
        ({"d_model": 21}, "d_model 21 is odd"),
        ({"mem_len": -1}, "mem_len is -1; it must be a whole number from 0, or null"),
        ({"clamp_len": 1.5}, r"clamp_len is 1\.5; it must be a whole number from -1"),
        ({"attn_type": "unii"}, "attn_type is 'unii', which is not implemented. Did you mean"),
        ({"ff_activation": "mish"}, "ff_activation is 'mish'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        configure({**TINY, **changes})


@pytest.mark.parametrize(
    "entries, message",
    [
        (
            {"summary_type": "mean"},
            "summary_type is 'mean', which is not .*; accepted: last, cls_index, first",
        ),
        ({"summary_use_proj": False}, "summary_use_proj is False"),
        ({"summary_activation": None}, "summary_activation is None"),
        ({"summary_proj_to_labels": True}, "summary_proj_to_labels is True"),
    ],
)
def test_a_summary_that_is_another_function_is_refused(entries, message):
    with pytest.raises(UserError, match=message):
        make_model("xlnet", {**TINY, **entries}, "XLNetForSequenceClassification")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input_ids": None}, "XLNet reads `input_ids`"),
        ({"perm_mask": None}, "target_mapping is given without perm_mask"),
        ({"attention_mask": np.ones((4, 14))}, r"attention_mask has the shape \(4, 14\), and \(4, 9\) is needed"),
        ({"token_type_ids": np.ones((4, 1))}, r"token_type_ids has the shape \(4, 1\)"),
        ({"perm_mask": np.ones((4, 9, 8))}, r"perm_mask has the shape \(4, 9, 8\), and \(4, 9, 9\) is needed"),
        ({"target_mapping": np.ones((4, 2, 8))}, r"target_mapping has the shape .* and \(4, 2, 9\) is needed"),
        ({"target_mapping": np.ones(4)}, r"target_mapping has the shape \(4,\), and \(4, 'P', 9\) is needed"),
        ({"mems": (np.ones((4, 3, 24)),)}, "mems has 1 arrays: 0; block0, block1 are needed"),
        ({"mems": {"block0": 0, "norm": 0}}, "mems has 2 arrays: block0, norm; block0, block1 are needed"),
        (
            {"mems": (np.ones((4, 3, 24)), np.ones((4, 2, 24)))},
            r"mems of block1 has the shape \(4, 2, 24\), and \(4, 3, 24\) is needed",
        ),
        ({"mems": (np.ones(4), np.ones(4))}, r"mems of block0 has the shape \(4,\), and \(4, 0, 24\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        start(configure(TINY), {**texts(), **changes})
