"""Records: read as written; a malformed line is named."""

import json

import pytest

from tljax.base.errors import UserError
from tljax.reports.records import read_run


def write(folder, lines, config=None):
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def evaluation(step, split, value):
    return json.dumps({"kind": "evaluate", "step": step, "split": split, "metrics": {"accuracy": value}})


def test_a_run_is_read_whole(tmp_path):
    train = '{"kind": "train", "step": 1, "loss": NaN}'
    write(tmp_path, [train], '{"config": {"seed": 3}, "versions": {"jax": "1"}}')
    run = read_run(tmp_path)
    assert run.config == {"seed": 3}
    assert run.about == {"versions": {"jax": "1"}}
    assert run.inspect == {}
    assert [record["step"] for record in run.of("train")] == [1]


def test_the_chosen_evaluation_is_that_of_the_best_step_and_the_latest_of_those(tmp_path):
    end = json.dumps({"kind": "end", "step": 3, "best_step": 2})
    lines = [evaluation(s, "validation", v) for s, v in ((1, 0.1), (2, 0.9), (3, 0.3))]
    assert read_run(write(tmp_path, lines)).last_evaluations()["validation"]["metrics"] == {"accuracy": 0.3}
    lines += [evaluation(2, "test", 0.7), end, evaluation(2, "test", 0.8)]
    chosen = read_run(write(tmp_path, lines)).last_evaluations()
    assert {split: record["metrics"]["accuracy"] for split, record in chosen.items()} == {
        "validation": 0.9,
        "test": 0.8,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "train", "step"', "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "not a record with a `kind`"),
        ('{"step": 1}', "not a record with a `kind`"),
        ('{"kind": "train", "step": 1}', "the train record has no loss"),
        ('{"kind": "evaluate", "step": 1}', "the evaluate record has no split, metrics"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    write(tmp_path, ['{"kind": "end", "step": 1}', line])
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2") as caught:
        read_run(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_records_and_a_broken_config_are_said(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)
    write(tmp_path, [], '{"config":\n {]}')
    with pytest.raises(UserError, match=r"config\.json, line 2"):
        read_run(tmp_path)
