"""The page on many runs: well-formed, closed in itself, escaped, and true to the answer."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reports.test_run import check
from tljax.base.errors import RunError
from tljax.reports.answer import answer
from tljax.reports.calibration import ece, pooled
from tljax.reports.embedding import FEW, laid_out
from tljax.reports.gather import gather
from tljax.reports.importance import importances
from tljax.reports.overview import headline, write_overview

ROOT = Path(__file__).parents[2]


def test_the_page_leads_with_the_answer_and_its_cost(tmp_path, study):
    gathered = gather([study])
    found = answer(gathered)
    path = write_overview(tmp_path / "out", found, gathered)
    text = check(path)
    said = headline(found)
    assert said.startswith(
        "fine_tune (learning_rate=0.001) is best by validation: 91.2 [90.2, 92.3] % accuracy on test"
    )
    assert "at 20.0 s a run and 5k live parameters" in said
    assert "Against lora, the next, +1.4 [−0.2, 3.0] points: 3 seeds cannot decide it" in said
    assert said.endswith("It is really better than linear_probe.")
    parts = (said, "3 GFLOP", "2.0 GB", "20 runs: 18 done, 1 failed, 1 pruned", "RunError: the loss is <nan>", "ECE")
    for part in (*parts, "Importance", "Confusion of fine_tune on test", "paired bootstrap over examples, 240 pairs"):
        assert part in text
    markup = path.read_text(encoding="utf8")
    assert "<nan>" not in markup and "<script" not in markup
    assert markup.count("<svg") == 3 + 1 + 3 + 1 + 1 + 1, "costs, curves, slices, importance, confusion, calibration"
    assert write_overview(tmp_path / "again", found, gathered).read_bytes() == path.read_bytes()


def test_the_tables_hold_what_the_page_says(tmp_path, study):
    gathered = gather([study])
    found = answer(gathered)
    write_overview(tmp_path, found, gathered)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| fine_tune | learning_rate=0.001 | 3 | 91.2 [90.2, 92.3] | 91.2 [90.2, 92.3] |")
    assert "seeds < 0.001, examples < 0.001 | yes |" in lines[4]
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["fine_tune", "lora", "linear_probe"]
    values = [float(value) for value in rows[0]["values"].split()]
    assert values == found.rows[0].values and float(rows[0]["mean"]) == pytest.approx(np.mean(values))
    assert rows[0]["seeds"] == "0 1 2" and float(rows[2]["p_seeds"]) < 0.001
    latex = (tmp_path / "table.tex").read_text()
    assert latex.startswith("\\begin{tabular}") and "fine\\_tune" in latex and "\\%" in latex and "−" not in latex


def test_an_oracle_is_called_so(tmp_path, study):
    gathered = gather([study])
    path = write_overview(tmp_path, answer(gathered, select="oracle"), gathered)
    text = check(path)
    assert "is best on test itself (oracle)" in text and "the first row is too good" in text


def test_the_command_line_writes_beside_the_study_and_loads_no_jax(tmp_path, study):
    code = (
        "import sys; from tljax.cli.main import main;"
        f"code = main(['report', '--metric=accuracy', {str(study)!r}, '--output={tmp_path}']);"
        "assert 'jax' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "is best by validation" in done.stdout and (tmp_path / "report.html").is_file()
    code = "import sys; from tljax.cli.main import main\ntry: main(['report', '--help'])\nexcept SystemExit: pass\n"
    code += "loaded = {*sys.modules} & {'jax', 'numpy', 'optuna', 'matplotlib', 'scipy'}; assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_place_that_cannot_be_written_is_said(tmp_path, study):
    gathered = gather([study])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written into"):
        write_overview(tmp_path / "file", answer(gathered), gathered)


def test_pooled_bins_are_those_of_all_examples():
    first = [{"bin": 11, "count": 10, "confidence": 0.75, "accuracy": 0.5}]
    second = [{"bin": 11, "count": 30, "confidence": 0.78, "accuracy": 0.9}]
    second.append({"bin": 14, "count": 40, "confidence": 0.95, "accuracy": 0.95})
    bins = pooled([first, second])
    assert bins[0] == pytest.approx({"bin": 11, "count": 40, "confidence": 0.7725, "accuracy": 0.8})
    assert ece(bins) == pytest.approx(0.5 * 0.0275)


def test_importance_finds_what_matters():
    generator = np.random.default_rng(0)
    trials = [
        ({"rate": rate, "seed": seed, "same": 1}, 10 * rate + 0.01 * generator.standard_normal())
        for rate in (0.1, 0.2, 0.3)
        for seed in range(4)
    ]
    found = importances(trials)
    assert set(found) == {"rate", "seed"} and found["rate"] > 0.9
    assert importances(trials[:3]) == {} and importances([]) == {}
    assert importances([(settings, 1.0) for settings, _ in trials]) == {}


def test_a_map_keeps_groups_together():
    generator = np.random.default_rng(0)
    centres = 20 * generator.standard_normal((3, 8))
    labels = np.repeat(np.arange(3), 40)
    features = (centres[labels] + generator.standard_normal((120, 8))).astype(np.float32)
    places, how = laid_out(features)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(120)
    assert "t-SNE" in how and np.mean(labels[distances.argmin(1)] == labels) == 1.0
    few, how = laid_out(features[: FEW - 1])
    assert few.shape == (FEW - 1, 2) and "principal components" in how
