"""Masked language modelling on a tiny BERT: the reference's loss at the masks, training, filling in."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.tiny import TINY_BERT, save_tiny_bert, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny_bert(tmp_path_factory.mktemp("mlm") / "bert")
    torch.manual_seed(1)
    theirs = BertForMaskedLM(BertConfig(**TINY_BERT)).eval()
    with torch.no_grad():
        theirs.cls.predictions.bias.uniform_(-1, 1)
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_text("text\n" + "\n".join(["red green blue warm", "cold round", "sharp old new soft loud calm red"] * 4))
    entry = dict(source=f"csv:{path}", processor=dict(max_length=16, lengths=(8, 16)))
    return dict(
        seed=0,
        model=dict(source=str(folder)),
        task=dict(name="masked_lm", rate=0.3),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=4, steps=60),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


def test_perplexity_is_that_of_the_reference_at_the_same_masks(folder, config):
    experiment = build(config)
    assert not experiment.fresh_head
    assert "pooler" not in experiment.stages
    numbers, _, predictions = evaluate_as_is(experiment, "test")
    theirs = BertForMaskedLM.from_pretrained(folder).eval()
    maker, records = experiment.processors["test"], experiment.sources["test"].records
    losses = []
    for i in range(len(records)):
        batch = maker.collate([maker.example(records[i])])
        with torch.no_grad():
            logits = theirs(**{name: torch.tensor(x).long() for name, x in batch["inputs"].items()}).logits[0]
        places, labels = (torch.tensor(batch["targets"][name][0]).long() for name in ("positions", "labels"))
        each = torch.nn.functional.cross_entropy(logits[places], labels, reduction="none")
        assert predictions["nll"][i] == pytest.approx(each.sum().item(), rel=1e-5)
        losses += each[labels >= 0].tolist()
    assert numbers["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_it_learns_and_exports_what_the_reference_loads_strictly(config, tmp_path):
    experiment, losses = train_steps(config, 60)
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.4
    save_pretrained(experiment.model, experiment.variables, tmp_path, processor=None)
    _, info = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_masks_are_filled_in(folder, config):
    experiment = build(config)
    lines = predict_records(experiment, [{"id": 0, "text": "red [MASK] blue [MASK]"}, {"id": 1, "text": "[MASK]"}])
    assert [len(line["masks"]) for line in lines] == [2, 1]
    theirs = BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = experiment.readers["test"].tokenizer
    inputs = tokenizer("red [MASK] blue [MASK]", return_tensors="pt")
    with torch.no_grad():
        chances = torch.softmax(theirs(**inputs).logits[0], -1)
    for place, found in zip((2, 4), lines[0]["masks"], strict=True):
        values, ids = chances[place].topk(5)
        assert [line["token"] for line in found] == [tokenizer.decode([i]) for i in ids]
        np.testing.assert_allclose([line["probability"] for line in found], values, atol=2e-6)


def test_what_cannot_be_masked_is_refused(config):
    with pytest.raises(UserError, match=r"rate is 1\.5"):
        build({**config, "task": {"name": "masked_lm", "rate": 1.5}})
    with pytest.raises(UserError, match="needs a decoder"):
        build({**config, "task": {"name": "causal_lm", "length": 8}})


def test_the_step_of_a_frozen_encoder_trains_the_head_alone(config):
    experiment = build({**config, "strategy": {"linear_probe": {}}})
    leaves = ("transform/kernel", "transform/bias", "norm/scale", "norm/bias", "out/bias")
    assert set(make_job(experiment).state.live) == {f"head/{leaf}" for leaf in leaves}
