"""T5 as folders: every bit goes round, and transformers' own classes load what goes out strictly and say the same."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from tests.tiny import save_tiny_t5
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward
from tljax.models.heads import Classifier

IDS = {"input_ids": np.array([[3, 5, 6, 7, 1]]), "decoder_input_ids": np.array([[0, 4, 8]])}
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def _untied(folder):
    """A folder as Google's of version 1.1: an output embedding of its own, and a config.json that says so."""
    save_tiny_t5(folder, **GATED)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    entries = json.loads((folder / "config.json").read_text())
    for name in ("scale_decoder_outputs", "is_gated_act", "dense_act_fn"):
        entries.pop(name)
    (folder / "config.json").write_text(json.dumps({**entries, "tie_word_embeddings": False}))
    return folder


def _again(folder):
    """The same folder as transformers 5 writes it, which says of it that it is tied."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(_untied(folder))
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return folder


FOLDERS = {
    "tied": (save_tiny_t5, True, 0.25),
    "untied": (_untied, False, 1.0),
    "untied, written anew": (_again, False, 1.0),
    "tied, unscaled": (lambda folder: save_tiny_t5(folder, **GATED), True, 1.0),
}


def _strict(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_round_trip_keeps_every_bit(name, tmp_path):
    make, tied, scale = FOLDERS[name]
    make(tmp_path / "in")
    model, variables, processor = load_pretrained(tmp_path / "in")
    assert (model.head.tied, model.head.scale) == (tied, scale)
    save_pretrained(model, variables, tmp_path / "out", processor=processor)
    before, after = (load_file(tmp_path / kind / "model.safetensors") for kind in ("in", "out"))
    assert set(before) == set(after) and all(np.array_equal(before[key], after[key]) for key in before)
    theirs = _strict(transformers.AutoModelForSeq2SeqLM, tmp_path / "out")
    with torch.no_grad():
        wanted = theirs(**{key: torch.tensor(x) for key, x in IDS.items()}).logits.numpy()
    found, _ = forward(model, variables, IDS)
    assert np.abs(found["logits"] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_copies_of_the_words_are_read_and_unequal_ones_refused(tmp_path):
    from tljax.base.errors import UserError

    save_tiny_t5(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    copies = {name: tensors["shared.weight"].copy() for name in names}
    save_file({**tensors, **copies}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_pretrained(tmp_path).model.head.tied
    copies["lm_head.weight"][0, 0] += 1
    save_file({**tensors, **copies}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load_pretrained(tmp_path)


def test_the_encoder_alone_is_classified_and_exported(tmp_path):
    save_tiny_t5(tmp_path / "in")
    model, variables, processor = load_pretrained(tmp_path / "in", family="t5_encoder")
    assert model.head is None and set(variables["params"]["backbone"]) == {"encoder"}
    encoder = _strict(transformers.T5EncoderModel, tmp_path / "in")
    with torch.no_grad():
        wanted = encoder(input_ids=torch.tensor(IDS["input_ids"])).last_hidden_state.numpy()
    found, _ = forward(model, variables, {"input_ids": jnp.asarray(IDS["input_ids"])})
    assert np.abs(found["hidden"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    save_pretrained(model, variables, tmp_path / "whole", processor=processor)
    before, after = (load_file(tmp_path / kind / "model.safetensors") for kind in ("in", "whole"))
    assert all(np.array_equal(before[key], after[key]) for key in before)
    head = Classifier(3, pool="mean")
    params = {**variables["params"], "head": {"out": {"kernel": jnp.ones((16, 3)), "bias": jnp.zeros(3)}}}
    save_pretrained(model._replace(head=head), {**variables, "params": params}, tmp_path / "out", processor=processor)
    again = load_pretrained(tmp_path / "out", family="t5_encoder")
    assert (again.model.head.classes, again.model.head.pool) == (3, "mean")
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode("red green")
    inputs = {name: jnp.asarray([x]) for name, x in processor.example({"text": "red green"}).items()}
    assert np.allclose(forward(again.model, again.variables, inputs)[0]["logits"][0], theirs, atol=1e-5)


def test_another_vocabulary_takes_the_head_along(tmp_path):
    for make in (save_tiny_t5, _untied):
        make(tmp_path / "in")
        model, variables, _ = load_pretrained(tmp_path / "in")
        old = forward(model, variables, IDS)[0]["logits"]
        model, variables, _ = adapt(model, variables, vocab_size=40)
        new = forward(model, variables, IDS)[0]["logits"]
        assert new.shape == (1, 3, 40) and np.allclose(new[..., :32], old, atol=1e-5)
