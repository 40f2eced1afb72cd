"""Decoders as folders: they come in, go out, and transformers' own class loads them strictly and says the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.models.causal import CLASSES, GPT2, SIZES
from tljax.base.errors import UserError
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward
from tljax.models.generation import generate
from tljax.models.heads import Classifier, LanguageModel

IDS = np.array([[2, 5, 6, 7, 3]])
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


def _save(folder, name: str, **others):
    config, cls, _ = CLASSES[name]
    torch.manual_seed(0)
    entries = {**(GPT2 if name == "gpt2" else SIZES), "bos_token_id": 1, "eos_token_id": 2, **others}
    getattr(transformers, cls)(getattr(transformers, config)(**entries)).save_pretrained(folder)
    return folder


def _strict(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize(
    ("name", "tied"),
    [("gpt2", True), ("gpt2", False), ("llama", True), ("mistral", False), ("qwen2", True), ("qwen3", False)],
)
def test_a_round_trip_keeps_every_bit(tmp_path, name, tied):
    _save(tmp_path / "in", name, tie_word_embeddings=tied)
    model, variables, _ = load_pretrained(tmp_path / "in")
    assert model.head == LanguageModel(40, tied=tied)
    save_pretrained(model, variables, tmp_path / "out")
    before, after = (load_file(tmp_path / kind / "model.safetensors") for kind in ("in", "out"))
    assert set(before) == set(after) and all(np.array_equal(before[key], after[key]) for key in before)
    _strict(tmp_path / "out")


def test_the_first_files_of_gpt2_are_read(tmp_path):
    """Without a prefix, and with the causal masks that were stored once."""
    file = _save(tmp_path / "in", "gpt2") / "model.safetensors"
    old = {name.removeprefix("transformer."): x for name, x in load_file(file).items()}
    old["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
    save_file(old, file, metadata={"format": "pt"})
    model, variables, _ = load_pretrained(tmp_path / "in")
    assert model.head == LanguageModel(40) and list(variables["extras"]) == ["h.0.attn.bias"]
    save_pretrained(model, variables, tmp_path / "out")
    _strict(tmp_path / "out")


def test_another_vocabulary_takes_the_head_along(tmp_path):
    for tied in (True, False):
        _save(tmp_path / "in", "llama", tie_word_embeddings=tied)
        model, variables, _ = load_pretrained(tmp_path / "in")
        old = forward(model, variables, {"input_ids": IDS})[0]["logits"]
        model, variables, notes = adapt(model, variables, vocab_size=44)
        new = forward(model, variables, {"input_ids": IDS})[0]["logits"]
        assert new.shape == (1, 5, 44) and np.allclose(new[..., :40], old, atol=1e-5)
        assert [note.path for note in notes] == ["backbone/embed/words/embedding", "head"]
        save_pretrained(model, variables, tmp_path / "out")
        with torch.no_grad():
            theirs = _strict(tmp_path / "out")(torch.tensor(IDS)).logits.numpy()
        assert np.abs(theirs - new).max() <= 1e-5 * np.abs(theirs).max()


def test_without_its_head_or_with_another_it_is_the_bare_class(tmp_path):
    for name, bare in (("gpt2", "GPT2Model"), ("qwen3", "Qwen3Model")):
        _save(tmp_path / "in", name)
        model, variables, _ = load_pretrained(tmp_path / "in")
        params = {"backbone": variables["params"]["backbone"]}
        save_pretrained(model._replace(head=None), {"params": params}, tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [bare]
        _, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert load_pretrained(tmp_path / "out").model.head is None
        labelled, changed, _ = adapt(model, variables, head=Classifier(2, pool="mean"))
        save_pretrained(labelled, changed, tmp_path / "labelled", classes=("no", "yes"))
        entries = json.loads((tmp_path / "labelled" / "config.json").read_text())
        assert entries["id2label"] == {"0": "no", "1": "yes"}


def test_an_untied_head_on_a_tied_config_is_not_lost_in_silence(tmp_path):
    _save(tmp_path / "in", "llama", tie_word_embeddings=True)
    model, variables, _ = load_pretrained(tmp_path / "in")
    model, variables, _ = adapt(model, variables, head=LanguageModel(40, tied=False))
    with pytest.raises(UserError, match="as LlamaForCausalLM, which has no place for head/out/kernel"):
        save_pretrained(model, variables, tmp_path / "out")


def test_the_real_stories_are_told_and_told_again_by_transformers(weights_dir, tmp_path):
    pretrained = load_pretrained(weights_dir / "stories260K")
    told = generate(
        pretrained.model, pretrained.variables, {"input_ids": jnp.array([[1]])}, max_new_tokens=90, eos_token_id=2
    )
    tokens = np.asarray(told.tokens[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights_dir / "stories260K")
    assert tokenizer.decode(tokens).strip().startswith(STORY)
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out", processor=pretrained.processor)
    again = _strict(tmp_path / "out").generate(torch.tensor([[1]]), max_new_tokens=90, do_sample=False)
    assert np.array_equal(again[0, 1:].numpy(), tokens)


def test_a_model_from_scratch_is_loaded_by_transformers(tmp_path):
    """Its config.json is made of our config alone."""
    from tests.models.reference import make_model
    from tljax.models.forward import init_variables

    rope = {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}}
    small = {**SIZES, "num_hidden_layers": 1}
    cases = {
        "gpt2": {**GPT2, "n_layer": 1},
        "llama": {**small, **rope},
        "qwen3": {**small, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0},
    }
    for name, entries in cases.items():
        model = make_model(name, entries, CLASSES[name][1])
        variables = jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0))
        save_pretrained(model, variables, tmp_path / name)
        ours = forward(model, variables, {"input_ids": IDS})[0]["logits"]
        with torch.no_grad():
            theirs = _strict(tmp_path / name)(torch.tensor(IDS)).logits.numpy()
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), name
