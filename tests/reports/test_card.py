"""Model cards: what the hub reads of them, licences as they are stated, and intervals that follow from the records."""

import json

import pytest
from huggingface_hub import ModelCard
from scipy import stats

from tests.reports.many import EXAMPLES, STRATEGIES, write_run
from tljax.reports.card import licence_of, write_card

CONFIG = {
    "seed": 0,
    "model": {"source": "hf:owner/base@main", "sha256": "ab12"},
    "task": {"name": "classification"},
    "strategy": STRATEGIES["linear_probe"],
    "optim": {"name": "adamw", "learning_rate": 1e-3},
    "train": {"steps": 8},
    "data": {"train": {"source": "tljax:trec", "hold_out": 0.1}, "test": {"source": "tljax:trec", "split": "test"}},
}


@pytest.fixture
def parts(tmp_path):
    """(export, run folder, checkpoint) of a linear probe on texts."""
    run = write_run(tmp_path / "my run", seed=0, strategy=STRATEGIES["linear_probe"], rate=1e-3, share=0.75)
    export, base = tmp_path / "my run" / "export", tmp_path / "base"
    export.mkdir()
    base.mkdir()
    (export / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    for name in ("model.safetensors", "tokenizer.json"):
        (export / name).write_text("")
    return export, run, base


def card_of(parts, **changes):
    export, run, base = parts
    path = write_card(export, run, {**CONFIG, **changes}, base=base, origin="the checkpoint of step 8")
    assert path == export / "README.md"
    return ModelCard.load(path)


def test_the_front_matter_is_what_the_hub_reads(parts):
    (parts[2] / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    card = card_of(parts)
    data = card.data
    assert (data.license, data.library_name, data.base_model) == ("apache-2.0", "transformers", "owner/base")
    assert (data.pipeline_tag, data.datasets) == ("text-classification", ["trec"])
    assert {"tljax", "linear_probe"} <= set(data.tags)
    assert data.model_name == "my run"
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == {"accuracy", "macro_f1", "matthews", "log_loss"} == set(data.metrics)
    accuracy = results["accuracy"]
    assert (accuracy.metric_value, accuracy.dataset_name, accuracy.dataset_split) == (0.75, "trec", "test")
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n{card.text}")
    assert again.data.to_dict() == data.to_dict()


def test_the_text_tells_base_data_strategy_what_was_frozen_results_and_how_to_load_it(parts):
    text = card_of(parts).text
    for part in (
        "# my run",
        "`hf:owner/base@main`",
        "`ab12`",
        "| train | `tljax:trec` | `hold_out` = 0.1 |",
        "- Strategy: `linear_probe`",
        "| block0 | 4,900 | frozen |",
        "| head | 100 | 100 |",
        "commit abc (the checkpoint of step 8)",
        'BertForSequenceClassification.from_pretrained("FOLDER")',
        'tljax.load_pretrained("FOLDER")',
        "chosen on validation",
    ):
        assert part in text
    low, high = stats.binomtest(round(0.75 * EXAMPLES), EXAMPLES).proportion_ci(0.95, method="wilson")
    assert f"| test | accuracy | 75.0 % | {100 * low:.1f} % to {100 * high:.1f} % |" in text
    assert "accuracy by Wilson's; macro F1 by a bootstrap; matthews by a bootstrap" in text


@pytest.mark.parametrize(
    ("files", "library", "loading"),
    [
        (["modules.json"], "sentence-transformers", 'SentenceTransformer("FOLDER")'),
        (["adapter_config.json"], "peft", "PeftModel.from_pretrained"),
        (["model.npz"], "tljax", 'tljax.load_pretrained("FOLDER")'),
    ],
)
def test_each_format_says_how_it_is_loaded(parts, files, library, loading):
    for path in parts[0].iterdir():
        path.unlink()
    for name in files:
        (parts[0] / name).write_text("{}")
    card = card_of(parts)
    assert card.data.library_name == library and loading in card.text


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense:\n- mit\n---\n", "mit"),
        ("config.json", '{"license": "cc-by-4.0"}', "cc-by-4.0"),
        ("LICENSE", "MIT License\n\nCopyright (c) 2016\n", "mit"),
        ("LICENSE.txt", "  Apache License\n  Version 2.0, January 2004\n", "apache-2.0"),
        ("LICENCE", "YOLO LICENSE\nVersion 2, July 29 2016\n", "other"),
        ("README.md", "# no front matter\n", "unknown"),
        ("notes.txt", "MIT License", "unknown"),
    ],
)
def test_the_licence_is_the_one_that_the_checkpoint_states(tmp_path, name, text, licence):
    (tmp_path / name).write_text(text)
    assert licence_of(tmp_path).name == licence
    (tmp_path / "weights.h5").write_text("")
    assert licence_of(tmp_path / "weights.h5").name == licence, "a file's folder speaks for it"


def test_a_licence_that_nobody_knows_is_called_so(parts):
    card = card_of(parts)
    assert card.data.license == "unknown" and "Licence: **unknown**" in card.text
    export, run, _ = parts
    path = write_card(export, run, {**CONFIG, "model": {"family": "vit"}}, base=None, origin="as loaded")
    assert "the run started from random weights" in path.read_text()


def test_a_card_tells_nothing_of_the_machine(parts):
    data = {name: {"source": "csv:/data/of/mine/reviews.csv"} for name in ("train", "test")}
    model, train = {"source": "/data/of/mine/bert"}, {"steps": 8, "wandb": "secret", "cache": "/data/of/mine/cache"}
    text = (parts[0] / "README.md").read_text() if card_of(parts, data=data, model=model, train=train) else ""
    assert "`csv:reviews.csv`" in text and "- Source: `bert`" in text
    assert "of/mine" not in text and "secret" not in text


def test_a_run_without_records_has_a_card_too(parts):
    run = parts[1]
    for name in ("metrics.jsonl", "records.jsonl", "inspect.json"):
        (run / name).unlink()
    card = card_of(parts)
    assert card.data.eval_results is None and "has recorded no evaluation" in card.text


def test_metrics_without_answers_have_no_interval(parts):
    record = {"kind": "evaluate", "step": 0, "split": "test", "metrics": {"spearman": 0.8}, "tables": {}}
    (parts[1] / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    text = card_of(parts).text
    assert "| test | spearman | 0.8000 | – |" in text and "too little of each example" in text
