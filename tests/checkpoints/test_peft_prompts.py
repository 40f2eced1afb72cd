"""Folders of prefixes and prompts: what we write computes the same in peft, and what peft writes the same here."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.tiny import TINY_BERT
from tljax.base.errors import UserError
from tljax.base.paths import flatten, sibling, unflatten
from tljax.checkpoints import peft_prompts
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.peft_format import load_adapter, save_adapter
from tljax.models.forward import forward
from tljax.strategies.lora import lora
from tljax.strategies.prefix import prefix
from tljax.strategies.prompt import prompt

# peft 0.21 asks for what transformers 5.23 calls by another name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COUNT = 3
IDS = np.array([[2, 7, 9, 11, 3], [2, 5, 6, 3, 0]])
MASK = (IDS > 0).astype(np.int64)
LLAMA = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)
GPT2 = dict(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
MODELS = {
    "bert": ("BertForSequenceClassification", {**TINY_BERT, "num_labels": 3}, "SEQ_CLS"),
    "gpt2": ("GPT2LMHeadModel", GPT2, "CAUSAL_LM"),
    "llama": ("LlamaForCausalLM", LLAMA, "CAUSAL_LM"),
}
PLANS = {
    "prefix": lambda paths, **options: prefix((), paths, length=COUNT, **options),
    "prompt": lambda paths: prompt((), paths, length=COUNT),
}
PAIRS = [(name, kind) for name in MODELS for kind in PLANS]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Name → (transformers' model, ours)."""
    import transformers

    found = {}
    for name, (cls, entries, _) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, cls).config_class(**entries, initializer_range=0.3)
        theirs = getattr(transformers, cls)(config).eval()
        folder = tmp_path_factory.mktemp("peft_prompts") / name
        theirs.save_pretrained(folder)
        found[name] = theirs, load_pretrained(str(folder))
    return found


@pytest.fixture(scope="module")
def peft():
    """The library, which takes seconds to import."""
    import peft

    return peft


def adapted(variables, plan):
    """The leaves of `plan` at random values, and a head that has moved."""
    flat, generator, made = flatten(variables["params"]), np.random.default_rng(0), {}
    for path, (adapter,) in plan(tuple(flat)).adapters.items():
        for name, leaf in adapter.init(jax.random.key(0), flat[path]).items():
            moved = 0 if name in adapter.frozen else generator.normal(0, 0.5, leaf.shape)
            made[sibling(path, name)] = np.asarray(leaf + moved, np.float32)
    head = {path: leaf + 0.1 for path, leaf in flat.items() if path.startswith("head/")}
    return {**variables, "params": unflatten({**flat, **made, **head})}


def ours_on(model, variables, key="logits"):
    inputs = {"input_ids": jnp.asarray(IDS), "attention_mask": jnp.asarray(MASK)}
    return np.asarray(jax.jit(lambda v: forward(model, v, inputs)[0][key])(variables))


def theirs_on(model, key="logits"):
    """Without the places of a prompt, which peft's language models keep."""
    with torch.no_grad():
        found = getattr(model.eval()(torch.tensor(IDS), attention_mask=torch.tensor(MASK)), key).numpy()
    return found[:, -IDS.shape[1] :] if found.ndim == 3 else found


def compare(ours, theirs):
    ours, theirs = (x * MASK[..., None] if x.ndim == 3 else x for x in (ours, theirs))
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_folder_of_ours_loads_in_peft_and_comes_back(name, kind, pairs, peft, tmp_path):
    theirs, ours = pairs[name]
    variables = adapted(ours.variables, PLANS[kind])
    folder = save_adapter(tmp_path / "adapter", ours.model, variables, base="somewhere")
    entries = json.loads((folder / "adapter_config.json").read_text())
    assert entries["num_virtual_tokens"] == COUNT and entries["task_type"] == MODELS[name][2]
    found = ours_on(ours.model, variables)
    assert np.abs(found - ours_on(ours.model, ours.variables)).max() > 0.1
    compare(found, theirs_on(peft.PeftModel.from_pretrained(copy.deepcopy(theirs), folder)))
    back = flatten(load_adapter(folder, ours.model, ours.variables)["params"])
    expected = flatten(variables["params"])
    assert back.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(back[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_folder_of_peft_loads_here(name, kind, pairs, peft, tmp_path):
    theirs, ours = pairs[name]
    torch.manual_seed(1)
    config = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}[kind]
    options = {"prefix_projection": True, "encoder_hidden_size": 5} if (name, kind) == ("bert", "prefix") else {}
    model = peft.get_peft_model(
        copy.deepcopy(theirs), config(task_type=MODELS[name][2], num_virtual_tokens=COUNT, **options)
    )
    expected = theirs_on(model)
    model.save_pretrained(tmp_path)
    variables = load_adapter(tmp_path, ours.model, ours.variables)
    compare(ours_on(ours.model, variables), expected)
    paths = tuple(flatten(ours.variables["params"]))
    wanted = {sibling(path, leaf) for path, (a,) in PLANS[kind](paths).adapters.items() for leaf in a.leaves}
    assert set(flatten(variables["params"])) - set(paths) == wanted, "those of the strategy, which may start from them"


@pytest.mark.parametrize("kind", PLANS)
def test_without_a_head_the_folder_is_for_the_model_alone(kind, pairs, peft, tmp_path):
    theirs, ours = pairs["bert"]
    variables, model = adapted(ours.variables, PLANS[kind]), ours.model._replace(head=None)
    folder = save_adapter(tmp_path / "adapter", model, variables)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(theirs.bert), folder)
    compare(ours_on(model, variables, "hidden"), theirs_on(loaded, "last_hidden_state"))
    compare(ours_on(model, variables, "pooled"), theirs_on(loaded, "pooler_output"))


def test_what_cannot_be_exchanged_is_refused(pairs, tmp_path, monkeypatch):
    _, ours = pairs["bert"]
    paths = tuple(flatten(ours.variables["params"]))
    both = adapted(adapted(ours.variables, PLANS["prompt"]), PLANS["prefix"])
    upper = r"backbone/block1/attention/(key|value)/kernel"
    cases = {
        "prefix and prompt together": both,
        "lora and prompt together": adapted(adapted(ours.variables, PLANS["prompt"]), lambda p: lora((), paths)),
        "block0/attention/key/prefix is missing": adapted(
            ours.variables, lambda paths: PLANS["prefix"](paths, targets=upper)
        ),
        "embed/positions/prefix is missing": adapted(ours.variables, lambda p: PLANS["prefix"](p, places=False)),
    }
    for message, variables in cases.items():
        with pytest.raises(UserError, match=message):
            save_adapter(tmp_path / "adapter", ours.model, variables)
    variables = adapted(ours.variables, PLANS["prompt"])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="of bert; they are exchanged for gpt2"):
        patch.setattr(peft_prompts, "FAMILIES", ("gpt2",))
        save_adapter(tmp_path / "adapter", ours.model, variables)
    folder = save_adapter(tmp_path / "adapter", ours.model, variables)
    tensors = load_file(folder / "adapter_model.safetensors")
    entries = json.loads((folder / "adapter_config.json").read_text())
    for changed, message in (
        ({"peft_type": "P_TUNING"}, "peft_type is 'P_TUNING'"),
        ({"num_transformer_submodules": 2}, "an encoder and a decoder"),
        ({"peft_type": "PREFIX_TUNING"}, r"shape \(3, 16\), and rows of 64 are needed"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**entries, **changed}))
        with pytest.raises(UserError, match=message):
            load_adapter(folder, ours.model, ours.variables)
    (folder / "adapter_config.json").write_text(json.dumps(entries))
    save_file({name: x for name, x in tensors.items() if "." in name}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="prompt_embeddings is missing"):
        load_adapter(folder, ours.model, ours.variables)
