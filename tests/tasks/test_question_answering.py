"""Answers in long texts with a tiny BERT: windows hold every answer, learning, n-best, the published scores."""

import json

import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering

from tests.tiny import WORDS, save_tiny_bert, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.base.errors import UserError
from tljax.base.types import Source
from tljax.checkpoints.save import save_pretrained
from tljax.data.processors import load_processor
from tljax.data.questions import Spans, windows
from tljax.data.sources import open_source
from tljax.data.squad import parse
from tljax.models.forward import forward
from tljax.tasks.question_answering import answers, overlap, plain


def squad(count=12, length=9):
    """Which word follows the one that the question names?"""
    generator, questions = np.random.default_rng(0), []
    for i in range(count):
        words = generator.permutation(WORDS)[:length].tolist()
        asked = int(generator.integers(0, length - 1))
        start = len(" ".join(words[: asked + 1])) + 1
        answer = {"text": words[asked + 1], "answer_start": start}
        questions.append(
            {"context": " ".join(words), "qas": [{"id": f"q{i}", "question": words[asked], "answers": [answer]}]}
        )
    return {"version": "1.1", "data": [{"title": "words", "paragraphs": questions}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    save_tiny_bert(folder / "bert")
    (folder / "train.json").write_text(json.dumps(squad()))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    entry = dict(source=f"squad:{folder / 'train.json'}", processor=dict(max_length=16, lengths=(13, 16)))
    return dict(
        seed=0,
        model=dict(source=str(folder / "bert")),
        task=dict(name="question_answering", stride=2, n_best=5),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=12, steps=120),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


@pytest.fixture(scope="module")
def trained(config):
    return train_steps(config, 120)[0]


def test_windows_hold_every_answer_and_point_to_it(folder):
    processor = load_processor(folder / "bert", {}).replace(max_length=8)
    source = open_source(f"squad:{folder / 'train.json'}", split="train")
    found = windows(source, processor, 2).records
    assert len(found) > 2 * len(source.records)
    held = {record["id"] for record in found if record["stop"]}
    assert held == {f"q{i}" for i in range(12)}
    for record in found:
        if record["stop"]:
            begin, end = record["offsets"][record["start"], 0], record["offsets"][record["stop"], 1]
            assert record["context"][begin:end] == record["answers"][0]
        # [CLS], the question's token and the two [SEP]s are no context.
        assert np.sum(record["offsets"][:, 0] < 0) == 4
    batch = Spans(processor).collate([Spans(processor).example(r) for r in found[:2]])
    assert batch["targets"]["start"].shape == (2,) and batch["context"].shape == batch["inputs"]["input_ids"].shape


def test_it_learns_and_answers_with_places_in_the_text(trained):
    numbers, tables, _ = evaluate_as_is(trained, "test")
    assert numbers["exact_match"] >= 0.75 and numbers["f1"] >= numbers["exact_match"]
    assert len(tables["samples"]) == 12
    record = {name: trained.sources["test"].records[0][name] for name in ("id", "question", "context")}
    line = predict_records(trained, [record])[0]
    assert line["answer"] == record["context"][line["start"] : line["stop"]]
    chances = [entry["probability"] for entry in line["n_best"]]
    assert len(chances) == 5 and chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1, abs=1e-5)


def test_logits_and_loss_are_the_reference_s(trained, tmp_path):
    save_pretrained(trained.model, trained.variables, tmp_path)
    theirs, info = BertForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    maker, records = trained.processors["test"], trained.sources["test"].records
    batch = maker.collate([maker.example(records[i]) for i in range(4)])
    inputs = {name: torch.tensor(x).long() for name, x in batch["inputs"].items()}
    start, stop = (torch.tensor(batch["targets"][name]).long() for name in ("start", "stop"))
    with torch.no_grad():
        wanted = theirs.eval()(**inputs, start_positions=start, end_positions=stop)
    outputs, _ = forward(trained.model, trained.variables, batch["inputs"])
    real = batch["inputs"]["attention_mask"] > 0
    for ours, other in ((outputs["start_logits"], wanted.start_logits), (outputs["stop_logits"], wanted.end_logits)):
        np.testing.assert_allclose(np.asarray(ours)[real], other.numpy()[real], rtol=1e-4, atol=1e-4)
    assert real.all(), "the reference's loss counts padding"
    loss = np.mean(trained.task.loss(outputs, batch["targets"]))
    assert loss == pytest.approx(wanted.loss.item(), rel=1e-4, abs=1e-5)


def test_the_best_answer_is_taken_over_all_windows():
    context = "red green blue"
    offsets = np.array([[-1, -1], [0, 3], [4, 9]]), np.array([[-1, -1], [4, 9], [10, 14]])
    records = [{"id": 1, "question": "?", "context": context, "offsets": o, "answers": ["blue"]} for o in offsets]
    predictions = {
        "start": np.array([[1, 2], [2, 1]]),
        "stop": np.array([[1, 2], [2, 1]]),
        "start_logits": np.array([[1.0, 0.5], [3.0, 0.5]]),
        "stop_logits": np.array([[1.0, 0.0], [2.0, 1.0]]),
        "null": np.array([9.0, 1.5]),
    }
    options = dict(n_best=3, max_answer=2)
    found = answers(predictions, records, no_answer=False, **options)
    assert [entry["answer"] for entry in found[0]["n_best"]] == ["blue", "green blue", "red"]
    assert found[0]["answer"] == "blue" and (found[0]["start"], found[0]["stop"]) == (10, 14)
    assert answers({**predictions, "null": np.array([9.0, 6.0])}, records, no_answer=True, **options)[0]["answer"] == ""


def test_scores_are_squad_s():
    assert plain("The  Panthers' (defense), a team.") == "panthers defense team"
    assert overlap("the big dog", "a big cat") == pytest.approx(0.5)
    assert overlap("", "") == 1 and overlap("", "dog") == 0


def test_xquad_is_the_official_one(data_dir):
    for language, word in (("en", "how many points"), ("de", "wie viele punkte")):
        source = open_source(f"tljax:xquad:{language}", split="test")
        assert len(source.records) == 1190
        assert word in source.records[0]["question"].lower()
        assert source.records[0]["answers"] == ["308"]


def test_what_cannot_be_asked_is_refused(folder, config):
    wrong = squad(1)
    wrong["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 1
    with pytest.raises(UserError, match=r"question 'q0': the answer '\w+' does not stand at character 1"):
        parse(json.dumps(wrong).encode(), "x.json")
    with pytest.raises(UserError, match=r"x\.json is not in SQuAD's format"):
        parse(b'{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', "x.json")
    processor = load_processor(folder / "bert", {}).replace(max_length=8)
    source = open_source(f"squad:{folder / 'train.json'}", split="train")
    with pytest.raises(UserError, match=r"of max_length 8 there are 4 left for the context; config\.task\.stride is 4"):
        windows(source, processor, 4)
    with pytest.raises(UserError, match="record 0 has no context"):
        windows(Source([{"id": 0, "question": "red"}], None, "s"), processor, 1)
    with pytest.raises(UserError, match="no head for answers"):
        build({**config, "task": {"name": "question_answering", "head": "own"}})
