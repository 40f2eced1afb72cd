"""Causal language modelling with the real stories260K: the reference's perplexity, learning, the published story."""

import numpy as np
import pytest
import torch

from tests.tiny import save_tiny_bert, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.base.errors import UserError

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
TEXTS = ("Tom had a red ball. He liked it.", "One day, Lily saw a dog.", "The sun was hot, so they sat under a tree.")


@pytest.fixture(scope="module")
def config(weights_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "texts.jsonl"
    path.write_text("\n".join(f'{{"text": "{text}"}}' for text in TEXTS * 4))
    entry = dict(source=f"jsonl:{path}")
    return dict(
        seed=0,
        model=dict(source=str(weights_dir / "stories260K")),
        task=dict(name="causal_lm", length=32, max_new_tokens=32),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=3e-3),
        train=dict(batch_size=4, steps=12),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


def test_packed_texts_have_the_loss_that_each_text_has_alone_in_the_reference(config, weights_dir):
    from transformers import AutoModelForCausalLM

    # Chunks as long as all the texts: nothing is cut.
    experiment = build({**config, "task": {"name": "causal_lm", "length": 512}})
    assert not experiment.fresh_head
    numbers, _, predictions = evaluate_as_is(experiment, "test")
    theirs = AutoModelForCausalLM.from_pretrained(weights_dir / "stories260K").eval()
    tokenizer = experiment.readers["test"].tokenizer
    total, count = 0.0, 0
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            loss = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        total, count = total + 4 * loss * (len(ids) - 1), count + 4 * (len(ids) - 1)
    assert predictions["count"].sum() == count
    assert numbers["loss"] == pytest.approx(total / count, rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)


def test_it_learns(config):
    _, losses = train_steps(config, 12)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    # The loss is the same, however many tokens of it are made at a time.
    assert train_steps({**config, "task": {**config["task"], "chunk": 5}}, 2)[1] == pytest.approx(losses[:2], rel=1e-5)


def test_texts_are_continued(config):
    records = [{"id": 0, "text": ""}, {"id": 1, "text": "Once upon a time, there was a"}]
    lines = predict_records(build(config), records)
    assert lines[0]["continuation"].startswith(STORY)
    assert lines[1]["continuation"].strip().startswith("little girl named Lily. She loved to play outside")


def test_what_cannot_be_modelled_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"length is 600, and the model has 512 positions.*\n.*max_new_tokens is 0"):
        build({**config, "task": {"name": "causal_lm", "length": 600, "max_new_tokens": 0}})
    with pytest.raises(UserError, match="causal_lm needs a decoder, and bert is none"):
        build({**config, "model": {"source": str(save_tiny_bert(tmp_path / "bert"))}})
