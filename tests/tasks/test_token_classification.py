"""Tagging with a tiny BERT: the reference's logits and loss, entities as seqeval counts them, learning, decoding."""

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification

from tests.tiny import save_tiny_bert, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records, run_probe
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained
from tljax.tasks.token_classification import _entities, check_scheme

SENTENCES = [
    [("red", "B-COLOUR"), ("green", "I-COLOUR"), ("old", "O")],
    [("loud", "O"), ("blue", "B-COLOUR")],
    [("calm", "B-MOOD"), ("red", "B-COLOUR"), ("new", "O"), ("soft", "O")],
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    text = "\n\n".join("\n".join(f"{word} {tag}" for word, tag in sentence) for sentence in SENTENCES * 4)
    (folder / "data.conll").write_text(text + "\n")
    entry = dict(source=f"conll:{folder / 'data.conll'}", processor=dict(max_length=16, lengths=(8, 16)))
    return dict(
        seed=0,
        model=dict(source=str(save_tiny_bert(folder / "bert"))),
        task=dict(name="token_classification", init="normal"),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=4, steps=60),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


@pytest.fixture(scope="module")
def trained(config):
    return train_steps(config, 60)[0]


def test_it_learns_the_tags_and_decodes_entities(trained):
    numbers, tables, _ = evaluate_as_is(trained, "test")
    assert numbers == pytest.approx({"f1": 1, "precision": 1, "recall": 1, "token_accuracy": 1})
    assert [(row["class"], row["count"]) for row in tables["per_class"]] == [("COLOUR", 12), ("MOOD", 4)]
    lines = predict_records(trained, [{"id": 0, "text": "red green old"}, {"id": 1, "tokens": ["loud"]}])
    assert lines[0]["entities"] == [{"kind": "COLOUR", "text": "red green", "start": 0, "stop": 2}]
    assert lines[1]["tags"] == ["O"] and lines[1]["entities"] == []


def test_what_is_exported_gives_the_same_logits_in_the_reference(trained, tmp_path):
    save_pretrained(trained.model, trained.variables, tmp_path, classes=trained.classes)
    theirs, info = BertForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.id2label[1] == "B-COLOUR"
    from tljax.models.forward import forward

    maker, record = trained.processors["test"], trained.sources["test"].records[2]
    batch = maker.collate([maker.example(record)])
    with torch.no_grad():
        inputs = {name: torch.tensor(x).long() for name, x in batch["inputs"].items()}
        wanted = theirs.eval()(**inputs, labels=torch.tensor(batch["targets"]).long())
    outputs, _ = forward(trained.model, trained.variables, batch["inputs"])
    np.testing.assert_allclose(outputs["logits"], wanted.logits, atol=1e-4)
    batch["weight"] = np.ones(1, np.float32)
    task = trained.task
    weights = task.weights(batch)
    loss = np.sum(task.loss(outputs, task.targets(batch)) * weights) / np.sum(weights)
    assert loss == pytest.approx(wanted.loss.item(), rel=1e-3, abs=1e-6)


def test_words_that_were_cut_off_count_as_outside(trained):
    short = dict(max_length=3, lengths=())
    experiment = build({**trained.config, "data": {"test": {**trained.config["data"]["test"], "processor": short}}})
    numbers, _, _ = evaluate_as_is(experiment._replace(variables=trained.variables), "test")
    # Of each sentence the first word is left: in the second it is no entity, in the first it is half of one.
    assert numbers["recall"] == pytest.approx(1 / 4) and numbers["precision"] == pytest.approx(1 / 2)


def test_a_probe_of_every_token_is_refused(trained):
    with pytest.raises(UserError, match="probe is a linear classifier, and the task token_classification has another"):
        run_probe(trained, ["test"])


def test_a_half_found_entity_is_wrong():
    found = _entities([["B-A", "I-A", "O"], ["B-B", "O", "O"]], [["B-A", "O", "O"], ["B-B", "O", "O"]])
    assert found["precision"] == found["recall"] == 0.5
    assert found["token_accuracy"] == pytest.approx(5 / 6)


def test_classes_that_are_no_tags_are_refused(config):
    with pytest.raises(UserError, match=r"'PER' is no tag of the form.*\n.*there is no tag O"):
        check_scheme(("PER", "B-LOC"))
    with pytest.raises(UserError, match=r"scheme is 'bioes'"):
        build({**config, "task": {"name": "token_classification", "scheme": "bioes"}})
