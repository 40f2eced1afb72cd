"""The answer: chosen on validation, told on test, and no more sure than the seeds and the examples allow."""

import pytest

from tests.reports.many import EXAMPLES, STRATEGIES, write_run
from tljax.base.errors import UserError
from tljax.reports.answer import answer, cost
from tljax.reports.gather import gather


def study_of(folder, rows, *, rate=1e-3):
    """name → (test accuracy, validation accuracy) of each seed, as runs."""
    for name, values in rows.items():
        for seed, (share, validation) in enumerate(values):
            given = {"strategy": STRATEGIES[name], "rate": rate, "share": share, "validation": validation}
            write_run(folder / f"{name}{rate}{seed}", seed=seed, **given)
    return gather([folder])


def test_the_sweep_is_answered(study):
    found = answer(gather([study]))
    assert [row.name for row in found.rows] == ["fine_tune", "lora", "linear_probe"]
    assert {row.chosen for row in found.rows} == {"learning_rate=0.001"}
    near, far = found.comparisons
    assert near.verdict == "not shown" and near.reason.startswith("3 seeds cannot decide it, and neither can 240")
    assert far.verdict == "yes" and max(far.p) < 0.001
    assert far.seeds.mean == pytest.approx(0.165, abs=0.01) and far.examples.n == EXAMPLES
    assert cost(found.rows[0]) == {
        "seconds": 20.0,
        "live_parameters": 5000,
        "step_flops": 3e9,
        "run_flops": 24e9,
        "peak_memory": 2_000_000_000,
    }
    assert found.unread == []
    (failed,) = (group for group in found.groups if group.settings["optim.learning_rate"] == 1.0)
    assert failed.name == "lora, learning_rate=1" and [entry.state for entry in failed.entries] == ["failed"]


def test_settings_are_chosen_on_validation_and_never_on_test(tmp_path):
    study_of(tmp_path, {"lora": [(0.9, 0.6), (0.9, 0.61)]}, rate=0.1)
    gathered = study_of(tmp_path, {"lora": [(0.5, 0.8), (0.5, 0.81)]}, rate=0.2)
    gathered = study_of(tmp_path, {"fine_tune": [(0.7, 0.7), (0.7, 0.71)]}, rate=0.3)
    found = answer(gathered)
    assert [(row.name, row.chosen, row.values) for row in found.rows] == [
        ("lora", "learning_rate=0.2", [0.5, 0.5]),
        ("fine_tune", "", [0.7, 0.7]),
    ]
    assert found.comparisons[0].seeds.mean == pytest.approx(-0.2), "the best by validation is behind on test"
    oracle = answer(gathered, select="oracle")
    assert (oracle.rows[0].chosen, oracle.rows[0].values) == ("learning_rate=0.1", [0.9, 0.9])


def test_the_last_step_is_another_rule_than_the_best_one(tmp_path):
    folder = write_run(tmp_path / "run", seed=0, strategy=STRATEGIES["lora"], rate=0.1, share=0.8)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"best_step": 8', '"best_step": 4'))
    gathered = gather([folder])
    assert answer(gathered).rows[0].validation == [pytest.approx(0.7)]
    last = answer(gathered, select="last").rows[0]
    assert last.validation == [pytest.approx(0.8)] and last.values == [pytest.approx(0.8)]


def test_what_is_better_on_every_example_but_has_one_seed_is_so_for_this_run(tmp_path):
    found = answer(study_of(tmp_path, {"fine_tune": [(0.9, 0.9)], "linear_probe": [(0.5, 0.5)]}))
    (comparison,) = found.comparisons
    assert comparison.verdict == "these runs only" and "1 seed cannot decide" in comparison.reason


def test_seeds_that_agree_on_too_few_examples_say_nothing_of_others(tmp_path):
    steps = (0, 0.0125, 0.025)
    rows = {"fine_tune": [(0.9125 + d, 0.92) for d in steps], "lora": [(0.9 + d, 0.9) for d in steps]}
    (comparison,) = answer(study_of(tmp_path, rows)).comparisons
    assert comparison.p[0] < 0.001 and comparison.p[1] > 0.05
    assert comparison.verdict == "these examples only"


def test_other_test_data_are_not_paired(tmp_path):
    gathered = study_of(tmp_path, {"fine_tune": [(0.9, 0.9)] * 3, "lora": [(0.8, 0.8)] * 3})
    for entry in gathered.entries[:1]:
        entry.run.config["data"]["test"]["source"] = "csv:other.csv"
    assert all(comparison.examples is None for comparison in answer(gathered, by=["strategy"]).comparisons)


def test_seeds_in_common_are_paired(tmp_path):
    for seed, share in ((0, 0.5), (1, 0.6), (2, 0.7)):
        write_run(tmp_path / f"a{seed}", seed=seed, strategy=STRATEGIES["lora"], rate=0.1, share=share)
    for seed, share in ((2, 0.65), (1, 0.55), (5, 0.0)):
        write_run(tmp_path / f"b{seed}", seed=seed, strategy=STRATEGIES["fine_tune"], rate=0.1, share=share)
    (comparison,) = answer(gather([tmp_path])).comparisons
    assert comparison.seeds.n == 2 and comparison.seeds.mean == pytest.approx(0.05)
    assert comparison.row.name == "fine_tune" and len(comparison.row.values) == 3


def test_less_is_better_of_a_loss(tmp_path):
    gathered = study_of(tmp_path, {"fine_tune": [(0.9, 0.9)] * 2, "linear_probe": [(0.5, 0.5)] * 2})
    found = answer(gathered, metric="log_loss")
    assert found.question.mode == "min" and [row.name for row in found.rows] == ["fine_tune", "linear_probe"]
    assert found.comparisons[0].seeds.mean > 0, "positive where the best is better"


def test_what_cannot_be_asked_is_said(tmp_path, study):
    gathered = gather([study])
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        answer(gathered, metric="acuracy")
    with pytest.raises(UserError, match="Did you mean 'oracle'"):
        answer(gathered, select="orakel")
    stopped = write_run(tmp_path / "a", seed=0, strategy=STRATEGIES["lora"], rate=0.1, share=0.5, state="stopped")
    with pytest.raises(UserError, match="No run has finished with an evaluation; the runs are stopped"):
        answer(gather([stopped]))


def test_nothing_is_chosen_on_test(tmp_path):
    folder = write_run(tmp_path / "a", seed=0, strategy=STRATEGIES["lora"], rate=0.1, share=0.5)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"evaluate"' not in line or '"test"' in line]
    (folder / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match="what is best is not chosen on test"):
        answer(gather([folder]))
    assert answer(gather([folder]), select="oracle").rows[0].values == [0.5]
