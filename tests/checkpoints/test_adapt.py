"""`adapt`: each change of shape is named, reported, and leaves a model that runs and goes out."""

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.tiny import TINY_BERT, save_tiny_bert
from tljax.base.errors import UserError
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward
from tljax.models.heads import Classifier

IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return load_pretrained(save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert"))


def _hidden(model, variables):
    return np.asarray(forward(model, variables, {"input_ids": IDS})[0]["hidden"])


def test_a_grown_vocabulary_leaves_the_known_words_alone(bert):
    model, variables, notes = adapt(bert.model, bert.variables, vocab_size=40)
    np.testing.assert_array_equal(_hidden(model, variables), _hidden(bert.model, bert.variables))
    (note,) = notes
    assert (note.change, note.before, note.after, note.undoable) == ("vocab_size", (32, 16), (40, 16), False)
    assert str(note).startswith("adapted vocab_size: backbone/embed/words/embedding (32, 16) → (40, 16) (cut at the")
    assert str(note).endswith("export cannot undo it")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables["params"]))


def test_several_changes_and_a_head_go_out_and_are_loaded_strictly(bert, tmp_path):
    model, variables, notes = adapt(
        bert.model,
        bert.variables,
        rng=jax.random.key(1),
        head=Classifier(3, pool="pooled", start="normal"),
        vocab_size=20,
        max_position_embeddings=48,
    )
    assert [note.change for note in notes] == ["vocab_size", "max_position_embeddings", "head"]
    assert "none → Classifier of 3 classes" in str(notes[-1])
    save_pretrained(model, variables, tmp_path / "out")
    reference, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        theirs = reference.eval()(torch.tensor(IDS)).logits.numpy()
    ours = np.asarray(forward(model, variables, {"input_ids": IDS})[0]["logits"])
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5
    again = load_pretrained(tmp_path / "out")
    assert again.model.config == model.config
    for one, two in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(again.variables["params"]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_head_that_no_longer_fits_is_left_behind_and_the_note_says_so(tmp_path):
    torch.manual_seed(0)
    transformers.BertForPreTraining(transformers.BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    model, variables, notes = adapt(pretrained.model, pretrained.variables, vocab_size=20)
    assert "cls.predictions.bias" in str(notes[-1]) and notes[-1].path == "extras"
    save_pretrained(model, variables, tmp_path / "out")
    found, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert found.config.architectures == ["BertModel"] and found.config.vocab_size == 20
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


def test_a_vit_of_another_size_equals_the_references_interpolation(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
        id2label={0: "ant", 1: "bee"},
        label2id={"ant": 0, "bee": 1},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    model, variables, _ = adapt(pretrained.model, pretrained.variables, image_size=24)
    pixels = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    ours = np.asarray(forward(model, variables, {"pixel_values": pixels})[0]["logits"])
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path / "in").eval()
    with torch.no_grad():
        chw = torch.tensor(pixels.transpose(0, 3, 1, 2))
        theirs = reference(chw, interpolate_pos_encoding=True).logits.numpy()
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5
    save_pretrained(model, variables, tmp_path / "out")
    found = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert found.config.id2label == {0: "ant", 1: "bee"}
    with torch.no_grad():
        assert np.abs(found(chw).logits.numpy() - theirs).max() / np.abs(theirs).max() < 1e-5


def test_nothing_asked_changes_nothing(bert):
    model, variables, notes = adapt(bert.model, bert.variables)
    assert model == bert.model and notes == ()
    assert jax.tree.structure(variables) == jax.tree.structure(bert.variables)


def test_unknown_changes_are_listed_with_what_is_accepted(bert):
    with pytest.raises(UserError) as caught:
        adapt(bert.model, bert.variables, vocab_sise=3, image_size=3)
    message = str(caught.value)
    assert "vocab_sise. Did you mean 'vocab_size'" in message and "image_size" in message
