"""Sequence to sequence on a tiny T5: the reference's loss, learning, writing, measuring, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from tests.tiny import WORDS, save_csv, save_tiny_bert, save_tiny_t5, train_steps
from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.assembly.training import make_job
from tljax.base.errors import UserError
from tljax.checkpoints.save import save_pretrained


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The target names the words of the source backwards."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    lines = ["text\ttarget_text"]
    for _ in range(16):
        words = generator.choice(WORDS[:6], size=generator.integers(4, 6)).tolist()
        lines.append(f"{' '.join(words)}\t{' '.join(reversed(words))}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    entry = dict(source=f"tsv:{folder / 'pairs.tsv'}", processor=dict(max_length=8, lengths=()))
    return dict(
        seed=0,
        model=dict(source=str(save_tiny_t5(folder / "t5"))),
        task=dict(name="seq2seq", target_length=6, prefix="old "),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=2e-2),
        train=dict(batch_size=8, steps=150),
        mesh=dict(data=1),
        data=dict(train=entry, test=entry),
    )


@pytest.fixture(scope="module")
def trained(config):
    return train_steps(config, 150)[0]


def test_perplexity_is_that_of_the_reference(config):
    experiment = build({**config, "task": {**config["task"], "metrics": ()}})
    assert not experiment.fresh_head
    numbers, tables, predictions = evaluate_as_is(experiment, "test")
    assert not tables and "tokens" not in predictions
    theirs = T5ForConditionalGeneration.from_pretrained(config["model"]["source"]).eval()
    maker, records = experiment.processors["test"], experiment.sources["test"].records
    batch = maker.collate([maker.example(records[i]) for i in range(len(records))])
    inputs = {name: torch.tensor(x).long() for name, x in batch["inputs"].items() if name != "decoder_input_ids"}
    with torch.no_grad():
        # transformers shifts the labels itself.
        loss = theirs(**inputs, labels=torch.tensor(batch["targets"]).long()).loss.item()
    assert numbers["loss"] == pytest.approx(loss, rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert experiment.task.main == ("perplexity", "min")


def test_it_learns_to_write_what_the_reference_writes_too(trained, config, tmp_path):
    numbers, tables, _ = evaluate_as_is(trained, "test")
    assert numbers["perplexity"] < 1.5 and numbers["token_accuracy"] > 0.9
    assert min(numbers[name] for name in ("bleu", "chrf", "rouge1", "rougeL")) > 50
    assert set(tables) == {"samples"} and len(tables["samples"]) == 10
    assert set(tables["samples"][0]) == {"source", "target", "prediction"}
    texts = ["red green", "blue", "warm cold red"]
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    save_pretrained(trained.model, trained.variables, tmp_path, processor=trained.readers["test"])
    theirs, info = T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = trained.readers["test"].tokenizer
    inputs = tokenizer([f"old {text}" for text in texts], return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for options in ({"max_new_tokens": 6}, {"max_new_tokens": 5, "num_beams": 3, "length_penalty": 2.0}):
        writer = build({**config, "task": {**config["task"], **options}})._replace(variables=trained.variables)
        wanted = tokenizer.batch_decode(theirs.generate(**inputs, do_sample=False, **options), skip_special_tokens=True)
        assert [line["prediction"] for line in predict_records(writer, records)] == wanted


def test_label_smoothing_is_torch_s(config):
    experiment = build({**config, "task": {**config["task"], "label_smoothing": 0.2}})
    generator = np.random.default_rng(0)
    features, table = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4), (5, 4)))
    labels = np.array([[1, 4, -100], [0, -100, -100]])
    outputs = {"features": features, "output_embedding": table, "output_bias": None}
    each = np.asarray(experiment.task.loss(outputs, labels))
    logits = torch.tensor(features @ table.T).reshape(-1, 5)
    wanted = torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels).reshape(-1), reduction="none", label_smoothing=0.2
    )
    assert np.allclose(each.reshape(-1), wanted, atol=1e-5)
    weights = experiment.task.weights({"targets": labels, "weight": np.array([1.0, 0.5])})
    assert weights.tolist() == [[1, 1, 0], [0.5, 0, 0]]


def test_a_backbone_without_head_gets_that_of_its_family(config, tmp_path):
    from transformers import T5Model

    T5Model.from_pretrained(config["model"]["source"]).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(config["model"]["source"], name), tmp_path / name)
    experiment = build({**config, "model": {"source": str(tmp_path)}})
    assert experiment.task.head.tied and experiment.task.head.scale == 0.25


def test_what_does_not_fit_is_refused(config, tmp_path):
    def task(**options):
        return build({**config, "task": {**config["task"], **options}})

    with pytest.raises(UserError, match=r"metrics names 'bleau'\. Did you mean 'bleu'"):
        task(metrics=("bleau",))
    with pytest.raises(UserError, match="label_smoothing is 1"):
        task(label_smoothing=1)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        task(max_new_tokens=0)
    with pytest.raises(UserError, match="choose one"):
        task(temperature=0.5, num_beams=2)
    with pytest.raises(UserError, match="target_length is -1"):
        task(target_length=-1)
    with pytest.raises(UserError, match="needs an encoder–decoder, and bert is none"):
        build({**config, "model": {"source": str(save_tiny_bert(tmp_path / "bert"))}})
    small = save_tiny_t5(tmp_path / "small", vocab_size=12)
    with pytest.raises(UserError, match="has 15 tokens, and the model's word embedding 12 rows"):
        build({**config, "model": {"source": str(small)}})
    (tmp_path / "one.csv").write_text("text\nred\n")
    entry = dict(source=f"csv:{tmp_path / 'one.csv'}")
    with pytest.raises(UserError, match=r"record 0 holds no target text.*columns=dict"):
        evaluate_as_is(build({**config, "data": {"train": entry, "test": entry}}), "test")


def test_the_encoder_alone_classifies(config, tmp_path):
    entry = dict(
        source=f"csv:{save_csv(tmp_path / 'moods.csv')}",
        columns=dict(text="review", label="mood"),
        processor=dict(max_length=16, lengths=()),
    )
    model, task = {**config["model"], "family": "t5_encoder"}, dict(name="classification", pool="mean")
    experiment = build({**config, "model": model, "task": task, "data": {"train": entry, "test": entry}})
    assert experiment.stages == ("encoder/embed", "encoder/block0", "encoder/block1", "encoder/norm")
    live = make_job(experiment).state.live
    assert live and all(path.startswith(("backbone/encoder/", "head/")) for path in live)
    # The decoder takes no part, and goes out again as it came in.
    assert any(name.startswith("decoder.") for name in experiment.variables["extras"])
