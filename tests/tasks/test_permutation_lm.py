"""Permutation language modelling on a tiny XLNet: the reference's loss, what no target sees, training, filling in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import XLNetLMHeadModel

from tests.tiny import save_tiny_bert, save_tiny_xlnet, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained
from tljax.data.permutation import hidden_by_order
from tljax.models.forward import forward


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_xlnet(tmp_path_factory.mktemp("xlnet"), initializer_range=0.2, dropout=0.0)


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_text("text\n" + "\n".join(["red green blue warm", "cold round", "sharp old new soft loud calm red"] * 4))
    entry = dict(source=f"csv:{path}", processor=dict(max_length=10, lengths=()))
    return dict(
        seed=0,
        model=dict(source=str(folder)),
        task=dict(name="permutation_lm", share=3),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=4, steps=60),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


def _tensors(inputs):
    floats = ("perm_mask", "target_mapping", "attention_mask")
    return {n: torch.tensor(np.asarray(x)).to(torch.float if n in floats else torch.long) for n, x in inputs.items()}


def test_perplexity_is_that_of_the_reference_at_the_same_orders(folder, config):
    experiment = build(config)
    assert not experiment.fresh_head
    numbers, _, predictions = evaluate_as_is(experiment, "test")
    theirs = XLNetLMHeadModel.from_pretrained(folder).eval()
    maker, records = experiment.processors["test"], experiment.sources["test"].records
    losses = []
    for i in range(len(records)):
        batch = maker.collate([maker.example(records[i])])
        labels = torch.tensor(batch["targets"]).long()
        with torch.no_grad():
            found = theirs(**_tensors(batch["inputs"]), labels=labels)
        count = int((labels >= 0).sum())
        assert predictions["nll"][i] == pytest.approx(found.loss.item() * count, rel=1e-5)
        losses += [found.loss.item()] * count
    assert numbers["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_no_target_depends_on_itself_or_on_what_comes_after_it(config):
    experiment = build(config)
    rank = np.array([-1, 2, -1, 0, 3, -1, 1])
    ids = np.array([9, 10, 11, 12, 13, 14, 15])
    # One text as it is, and for each of its tokens one in which that token is another.
    texts = np.concatenate([ids[None], np.where(np.eye(7, dtype=bool), 18, ids)])
    inputs = {
        "input_ids": texts,
        "perm_mask": np.repeat(hidden_by_order(rank[None]), 8, axis=0),
        "target_mapping": np.repeat((rank == np.arange(4)[:, None])[None], 8, axis=0).astype(np.int8),
    }
    run = jax.jit(lambda v, x: forward(experiment.model._replace(head=None), v, x)[0]["hidden"])
    whole, *others = np.asarray(run(experiment.variables, jax.tree.map(jnp.asarray, inputs)))
    for place, changed in enumerate(others):
        moved = np.abs(changed - whole).max(axis=1) > 0
        assert moved.tolist() == [rank[place] < target for target in range(4)], place


def test_it_learns_and_exports_what_the_reference_loads_strictly(config, tmp_path):
    experiment, losses = train_steps(config, 60)
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.4
    save_pretrained(experiment.model, experiment.variables, tmp_path, processor=None)
    _, info = XLNetLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_masks_are_filled_in(folder, config):
    experiment = build(config)
    lines = predict_records(experiment, [{"id": 0, "text": "red<mask> blue<mask>"}, {"id": 1, "text": "<mask>"}])
    assert [len(line["masks"]) for line in lines] == [2, 1]
    theirs = XLNetLMHeadModel.from_pretrained(folder).eval()
    tokenizer = experiment.readers["test"].tokenizer
    inputs = tokenizer("red<mask> blue<mask>", return_tensors="pt")
    blank = inputs["input_ids"][0] == tokenizer.mask_token_id
    places = torch.eye(len(blank))[blank][None]
    hidden = blank.float().expand(1, len(blank), len(blank))
    with torch.no_grad():
        chances = torch.softmax(theirs(**inputs, perm_mask=hidden, target_mapping=places).logits[0], -1)
    for row, found in zip(chances, lines[0]["masks"], strict=True):
        values, ids = row.topk(5)
        assert [line["token"] for line in found] == [tokenizer.decode([i]) for i in ids]
        np.testing.assert_allclose([line["probability"] for line in found], values, atol=2e-6)


def test_what_cannot_be_permuted_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"share is 1; it must be a whole number from 2"):
        build({**config, "task": {"name": "permutation_lm", "share": 1}})
    with pytest.raises(UserError, match=r"candidates is 0"):
        build({**config, "task": {"name": "permutation_lm", "candidates": 0}})
    with pytest.raises(UserError, match="needs a model with a query stream, and bert has none"):
        build({**config, "model": {"source": str(save_tiny_bert(tmp_path))}})
