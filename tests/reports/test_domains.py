"""The section of a report about two domains: true to the record, and silent where there is none."""

import copy
import json
from pathlib import Path

from tljax.reports.domains import domain_sections, fallen
from tljax.reports.records import Run, read_run

FEATURES = {"start": {"effective_rank": 3.25, "spread": 0.5}, "end": {"effective_rank": 2.75, "spread": 0.25}}
RECORD = {
    "kind": "domains",
    "step": 8,
    "domains": ["train", "target"],
    "examples": [512, 300],
    "distances": {
        "start": {"proxy_a_distance": 1.75, "mmd2": 0.125},
        "end": {"proxy_a_distance": 0.5, "mmd2": -0.001},
    },
    "features": {"train": FEATURES, "target": FEATURES},
    "cka": {"stages": ["embed", "block0"], "train": [1.0, 0.75], "target": [0.5, None]},
    "predicted": {"target": {"start": {"class": "<b>", "share": 0.5}, "end": {"class": "a", "share": 0.25}}},
    "entries": {"test": {"start": 0.5, "end": 0.625, "standard_error": 0.01, "examples": 200}},
    "warnings": ["Collapse: of <all>."],
}


def run_of(*records):
    return Run(Path(), {}, {}, {}, list(records))


def test_the_section_tells_the_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    (made,) = domain_sections(read_run(tmp_path))
    for part in ("512 of train and 300 of target", "1.750", "-0.001", "3.250", "&lt;b&gt;: 50.0 %", "62.5 %"):
        assert part in made.markup
    assert "Collapse: of &lt;all&gt;." in made.markup and "<b>" not in made.markup
    assert made.markup.count("<svg") == 1 and "block0" in made.markup
    assert domain_sections(run_of()) == []


def test_what_is_not_known_is_left_out():
    record = copy.deepcopy(RECORD)
    record["distances"]["end"] = {"proxy_a_distance": None, "mmd2": None}
    record |= {"predicted": {}, "entries": {}, "warnings": [], "cka": {"stages": [], "train": [], "target": []}}
    (made,) = domain_sections(run_of(record))
    assert "–" in made.markup and "<svg" not in made.markup and "Accuracy" not in made.markup


def test_a_validation_that_fell_is_told():
    def runs(metric, values, best):
        evaluated = [
            {"kind": "evaluate", "step": i, "split": "validation", "metrics": {metric: x}} for i, x in enumerate(values)
        ]
        return run_of(*evaluated, {"kind": "end", "step": 9, "best": {"metric": metric, "value": best}})

    assert "0.7000 at the first evaluation and 0.6000" in fallen(runs("accuracy", (0.7, 0.8, 0.6), 0.8))[0]
    assert fallen(runs("accuracy", (0.7, 0.8, 0.75), 0.8)) == []
    assert "log loss" in fallen(runs("log_loss", (0.4, 0.3, 0.9), 0.3))[0]
    assert fallen(runs("log_loss", (0.4, 0.3), 0.3)) == fallen(runs("log_loss", (0.4,), 0.4)) == fallen(run_of()) == []
