"""The quickstart: scratch, linear probe, fine-tuning and TF-IDF on SciPy's docstrings, compared over seeds.

    python -m experiments.quickstart.run [--seeds=3] [--workdir=runs/quickstart]

Each strategy and seed is an ordinary run in a folder of its own; the best strategy (on validation data) is exported and
predicts three sentences.
"""

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from tljax.cli.config import load_config
from tljax.cli.main import main as launch

CONFIG = "configs/quickstart.py"
QUESTION = "Which SciPy module does this docstring describe? 8 labelled texts a class, 8 classes."
SENTENCES = (
    "Evaluate the Bessel function of the first kind.",
    "Design a low-pass filter and apply it to a sampled waveform.",
    "Test whether two samples come from the same distribution.",
)
# Name → (verb, values set over the config). Training from scratch moves every weight from random values, so it gets a
# larger rate.
CASES = {
    "linear probe": ("probe", {"task.normalize": True, "strategy": {"linear_probe": {}}}),
    "fine-tuning": ("train", {"strategy": {"fine_tune": {}}}),
    "from scratch": ("train", {"strategy": {"scratch": {}}, "optim.learning_rate": 5e-4, "optim.head_rate": 1.0}),
}
PLAIN = "TF-IDF + logistic regression"


def main(argv: list[str]) -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args(argv)
    started = time.monotonic()
    console = Console(stderr=True, highlight=False)

    for name, (verb, values) in CASES.items():
        for seed in range(options.seeds):
            console.rule(f"{name}, seed {seed}")
            code = launch(
                [
                    verb,
                    f"--config={CONFIG}",
                    f"--workdir={folder_of(options.workdir, name, seed)}",
                    f"--config.seed={seed}",
                    *(f"--config.{key}={value!r}" for key, value in values.items()),
                ]
            )
            if code:
                return code
    rows = [row_of(options.workdir, name, options.seeds) for name in CASES]
    rows.append(tf_idf(options.seeds))
    return conclude(options.workdir, rows, console, started)


def folder_of(workdir: Path, name: str, seed: int) -> Path:
    """The run folder of one strategy and seed."""
    return workdir / f"{name.replace(' ', '_')}_seed{seed}"


def row_of(workdir: Path, name: str, seeds: int) -> dict:
    """One row of the comparison, from the records of the runs."""
    from tljax.reports.records import read_run

    row = {"name": name, "values": [], "validation": [], "seconds": []}
    for seed in range(seeds):
        run = read_run(folder_of(workdir, name, seed))
        last = {r["split"]: r["metrics"] for r in run.records if r["kind"] == "evaluate"}
        row["values"].append(last["test"]["accuracy"])
        row["validation"].append(last["validation"]["accuracy"])
        row["seconds"].append(run.records[-1]["seconds"])
        row["live_parameters"] = run.inspect["total"]["live"]
    return row


def tf_idf(seeds: int) -> dict:
    """The plain alternative, on the same texts: scikit-learn's TF-IDF with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from tljax.assembly.experiment import open_entries

    row = {"name": PLAIN, "values": [], "seconds": []}
    for seed in range(seeds):
        started = time.monotonic()
        sources = open_entries({**load_config(Path(CONFIG)), "seed": seed})
        texts, labels = (
            {name: [record[key] for record in iterate(sources[name].records)] for name in ("train", "test")}
            for key in ("text", "label")
        )
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
        model.fit(texts["train"], labels["train"])
        row["values"].append(model.score(texts["test"], labels["test"]))
        row["seconds"].append(time.monotonic() - started)
        row["live_parameters"] = model[-1].coef_.size + model[-1].intercept_.size
    return row


def iterate(records):
    """The records of a random-access sequence, one after another."""
    return (records[i] for i in range(len(records)))


def conclude(workdir: Path, rows: list[dict], console: Console, started: float) -> int:
    """Table, report, export of the best, predictions."""
    from tljax.reports.comparison import comparison_table, verdict, write_comparison

    # The choice is made on validation data; the test accuracies are what the table shows.
    chosen = max((row for row in rows if "validation" in row), key=lambda row: sum(row["validation"]))
    run = folder_of(workdir, chosen["name"], 0)
    report = write_comparison(
        workdir,
        title="tljax quickstart",
        question=QUESTION,
        rows=rows,
        notes=[f"The strategy with the best validation accuracy is “{chosen['name']}”; it was exported."],
    )
    console.rule("result")
    Console().print(comparison_table(rows))
    print(verdict(rows))
    code = launch(["export", f"--workdir={run}", f"--output={workdir / 'export'}"])
    if code:
        return code
    console.rule("three sentences, as typed")
    code = launch(["predict", f"--workdir={run}", *(f"--text={sentence}" for sentence in SENTENCES)])
    console.print(f"report: {report}\n{time.monotonic() - started:.0f} s in all")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
