"""XLNet as folders: every bit goes round, and transformers' own classes load strictly what goes out and agree."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from tests.tiny import save_tiny_xlnet
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward

TEXTS = ["red green blue warm", "cold round"]
CASES = {
    "XLNetLMHeadModel": dict(tie_word_embeddings=False),
    "XLNetForSequenceClassification": dict(num_labels=3, summary_type="first", summary_activation="relu"),
    "XLNetForTokenClassification": dict(num_labels=4),
    "XLNetForQuestionAnsweringSimple": dict(),
    "XLNetModel": dict(),
}
RESULTS = {
    "XLNetForQuestionAnsweringSimple": {"start_logits": "start_logits", "stop_logits": "end_logits"},
    "XLNetModel": {"hidden": "last_hidden_state"},
}


def _strict(cls, folder):
    model, info = getattr(transformers, cls).from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize("cls", CASES)
def test_a_round_trip_keeps_every_bit_and_says_what_the_reference_says(cls, tmp_path):
    save_tiny_xlnet(tmp_path / "in", cls, n_layer=1, initializer_range=0.3, **CASES[cls])
    model, variables, processor = load_pretrained(tmp_path / "in")
    save_pretrained(model, variables, tmp_path / "out", processor=processor)
    before, after = (load_file(tmp_path / kind / "model.safetensors") for kind in ("in", "out"))
    assert set(before) == set(after) and all(np.array_equal(before[key], after[key]) for key in before)
    inputs = processor.collate([processor.example({"id": i, "text": text}) for i, text in enumerate(TEXTS)])
    with torch.no_grad():
        wanted = _strict(cls, tmp_path / "out")(**{name: torch.tensor(x).long() for name, x in inputs.items()})
    found = jax.jit(lambda v, x: forward(model, v, x)[0])(variables, inputs)
    for ours, theirs in RESULTS.get(cls, {"logits": "logits"}).items():
        a, b = np.asarray(found[ours]), wanted[theirs].numpy()
        assert a.shape == b.shape
        if cls != "XLNetForSequenceClassification":
            # Padding attends to what it likes, and is no place for an answer.
            a, b = (x[inputs["attention_mask"] > 0] for x in (a, b))
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_another_vocabulary_loads_strictly_with_its_bias(tmp_path):
    save_tiny_xlnet(tmp_path / "in", n_layer=1)
    model, variables, _ = load_pretrained(tmp_path / "in")
    model, variables, _ = adapt(model, variables, vocab_size=40)
    save_pretrained(model, variables, tmp_path / "out")
    theirs = _strict("XLNetLMHeadModel", tmp_path / "out")
    assert theirs.lm_loss.bias.shape == (40,) and theirs.lm_loss.weight is theirs.transformer.word_embedding.weight
