"""DistilBERT against transformers."""

import numpy as np
import pytest
import torch
import transformers

from tests.models.reference import distance, import_weights, make_model, random_norms, run
from tljax.base.errors import UserError
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.distilbert import FAMILY, configure

TINY = dict(
    vocab_size=40, dim=24, n_layers=2, n_heads=3, hidden_dim=36, max_position_embeddings=20, initializer_range=0.3
)
INPUTS = {
    "input_ids": np.random.default_rng(0).integers(0, 40, (3, 9)).astype(np.int32),
    "attention_mask": (np.arange(9)[None] < np.array([[9], [4], [1]])).astype(np.int32),
}


def reference(name: str, **changes):
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(transformers.DistilBertConfig(**{**TINY, **changes})).eval()
    random_norms(theirs)
    return theirs


def theirs_on(theirs):
    with torch.no_grad():
        return theirs(**{k: torch.from_numpy(v).long() for k, v in INPUTS.items()}, output_hidden_states=True)


@pytest.mark.parametrize(
    "changes", [{}, dict(n_heads=1, activation="relu"), dict(n_heads=12, n_layers=3, hidden_dim=7)]
)
def test_hidden_states_equal_the_reference(changes):
    theirs = reference("DistilBertModel", **changes)
    model = make_model("distilbert", {**TINY, **changes})
    ours, wanted = run(model, import_weights(model, theirs.state_dict()), INPUTS), theirs_on(theirs)
    for a, b in zip(ours["hidden_states"], wanted.hidden_states, strict=True):
        assert distance(a, b) <= 1e-5


@pytest.mark.parametrize("architecture", FAMILY.heads)
def test_heads_equal_the_reference_and_go_round_strictly(architecture, tmp_path):
    theirs = reference(architecture, num_labels=2 if "Question" in architecture else 3)
    theirs.save_pretrained(tmp_path / "in")
    model, variables, _ = load_pretrained(tmp_path / "in")
    ours, wanted = run(model, variables, INPUTS), theirs_on(theirs)
    if "Question" in architecture:
        real = INPUTS["attention_mask"] > 0
        np.testing.assert_allclose(np.asarray(ours["stop_logits"])[real], wanted.end_logits.numpy()[real], rtol=1e-4)
    else:
        assert distance(ours["logits"], wanted.logits) <= 1e-5
    save_pretrained(model, variables, tmp_path / "out")
    again, info = getattr(transformers, architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(UserError, match="sinusoidal_pos_embds is True"):
        configure({**TINY, "sinusoidal_pos_embds": True})
    with pytest.raises(UserError, match="dim 24 is no multiple of 5 heads"):
        configure({**TINY, "n_heads": 5})
    config = configure(TINY)
    with pytest.raises(UserError, match=r"21 tokens, and the model has 20 positions.*\n.*attention_mask has the shape"):
        FAMILY.start(config, {"input_ids": np.zeros((1, 21), int), "attention_mask": np.zeros((1, 2), int)})
    with pytest.raises(UserError, match="DistilBERT reads `input_ids`"):
        FAMILY.start(config, {"pixel_values": np.zeros((1, 2))})
