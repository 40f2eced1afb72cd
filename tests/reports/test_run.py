"""The report of a run: well-formed, self-contained, escaped, and true to the records."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tljax.reports import plots
from tljax.reports.records import read_run
from tljax.reports.run import duration, headline, size_of, write_run_report

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Checker(HTMLParser):
    """Collects text and attributes and insists that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.urls = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.urls += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf8"))
    assert checker.open == []
    assert all(url.startswith(("#", "data:")) for url in checker.urls)
    return " ".join(checker.text)


def write(folder, classes=("stats", "signal", "<script>alert(1)</script>")):
    size = len(classes)
    counts = [[9 if i == j else int(j == (i + 1) % size) for j in range(size)] for i in range(size)]
    per_class = [{"class": c, "precision": 0.9, "recall": 0.9, "f1": 0.9, "count": 10} for c in classes]
    tables = {"confusion": counts, "per_class": per_class, "classes": list(classes)}
    records = [
        {
            "kind": "train",
            "step": step,
            "loss": 2.0 / step if step != 3 else float("inf"),
            "learning_rate": 1e-4,
            "gradient_norm": 1.0,
            "steps_per_second": 5.0,
        }
        for step in range(1, 9)
    ]
    for step, value in ((4, 0.8), (8, 0.75)):
        metrics = {"accuracy": value, "log_loss": 0.5, "rmse": 3.0}
        records.append({"kind": "evaluate", "step": step, "split": "validation", "metrics": metrics, "tables": tables})
    records += [
        {
            "kind": "evaluate",
            "step": 4,
            "split": "test",
            "metrics": {"accuracy": 0.77, "macro_f1": 0.7},
            "tables": tables,
        },
        {"kind": "end", "step": 8, "best_step": 4, "seconds": 75.5}
        | {"best": {"metric": "accuracy", "value": 0.8, "split": "validation"}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {
        "seed": 1,
        "model": {"source": "a & b"},
        "task": {"name": "classification"},
        "strategy": {"last_k": {"k": 2}},
    }
    about = {"versions": {"jax": "0.10.2"}, "devices": {"platform": "cpu", "kind": "cpu", "count": 2}}
    (folder / "config.json").write_text(json.dumps({"config": config, **about}))
    sizes = ("parameter_bytes", "gradient_bytes", "optimizer_bytes")
    stages = [
        {"stage": "embed", "parameters": 1000, "live": 0, "rate": None, **dict.fromkeys(sizes, 0)},
        {"stage": "block0", "parameters": 500, "live": 500, "rate": [0.5, 1.0], **dict.fromkeys(sizes, 2_000_000)},
    ]
    total = {"parameters": 1500, "live": 500, **dict.fromkeys(sizes, 2_000_000)}
    (folder / "inspect.json").write_text(json.dumps({"stages": stages, "total": total}))
    return folder


def test_the_report_is_one_well_formed_file_that_tells_the_records(tmp_path):
    path = write_run_report(write(tmp_path))
    assert path == tmp_path / "report.html"
    text = check(path)
    for part in ("77.0 %", "last_k", "a & b", "strategy.last_k.k", "frozen", "0.5, 1", "2.0 MB", "0.10.2", "75.5 s"):
        assert part in text
    assert "<script>alert(1)</script>" in text  # as text: the parser has seen no such element
    assert "<script" not in path.read_text(encoding="utf8").replace("&lt;script", "")
    assert path.read_text(encoding="utf8").count("<svg") == 6


def test_pictures_and_samples_of_the_evaluation_are_shown(tmp_path):
    png = Image.new("RGB", (2, 2), "red")
    (tmp_path / "pictures").mkdir()
    png.save(tmp_path / "pictures" / "test-0.png")
    tables = {
        "pictures": [
            {"title": "cell <1>", "file": "pictures/test-0.png"},
            {"title": "gone", "file": "pictures/no.png"},
        ],
        "samples": [{"source": "ein Hund", "prediction": "a <dog>"}, {"source": "zwei", "target": "two"}],
    }
    record = {"kind": "evaluate", "step": 0, "split": "test", "metrics": {"bleu": 31.0}, "tables": tables}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    path = write_run_report(tmp_path)
    text = check(path)
    for part in ("cell <1>", "ein Hund", "a <dog>", "two"):
        assert part in text
    assert "gone" not in text
    assert path.read_text(encoding="utf8").count('src="data:image/png;base64,') == 1


def test_the_headline_is_the_result_on_test_and_says_how_it_was_chosen(tmp_path):
    assert headline(read_run(write(tmp_path))) == (
        "77.0 % accuracy on test (30 examples), with the checkpoint of step 4, "
        "which has the best accuracy on validation, 80.0 %."
    )


def test_the_same_records_give_the_same_bytes(tmp_path):
    first = write_run_report(write(tmp_path)).read_bytes()
    assert write_run_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"kind": "train", "step": 1, "loss": 1.5}],
        [
            {"kind": "evaluate", "step": 0, "split": "test", "metrics": {"spearman": 0.82}, "tables": {}},
            {"kind": "end", "step": 0},
        ],
        [
            {"kind": "probe", "step": 0, "metrics": {"accuracy": 0.5}},
            {"kind": "probe", "step": 1, "metrics": {"accuracy": 0.7}},
            {"kind": "evaluate", "step": 0, "split": "test", "metrics": {"accuracy": 0.6}},
        ],
        [
            {"kind": "evaluate", "step": 0, "split": "test", "metrics": {"rmse": 0.4}}
            | {"tables": {"targets": [0.0, 1.0, 5.0], "predicted": [0.2, 0.9, 4.0]}}
        ],
    ],
)
def test_a_run_that_has_recorded_little_has_a_report_too(tmp_path, lines):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    check(write_run_report(tmp_path))


@pytest.mark.parametrize("size", [2, 8, 77])
def test_a_confusion_matrix_names_every_class_and_count(size):
    classes = [f"class {i}" for i in range(size)]
    counts = [[17 if i == j else 0 for j in range(size)] for i in range(size)]
    picture = plots.confusion(counts, classes).markup
    assert picture.count(">17<") == size
    assert all(picture.count(f">{name}<") == 2 for name in classes)
    # Theme colours only: nothing is fixed to one background.
    assert set(re.findall(r"fill: (#[0-9a-f]{6})", picture)) <= {"#ffffff", "#000000"}


def test_units():
    assert [size_of(n) for n in (0, 999, 1000, 22_716_680, 3e12)] == ["0 B", "999 B", "1.0 KB", "22.7 MB", "3.0 TB"]
    assert [duration(s) for s in (0.25, 75.5, 600, 7000)] == ["0.2 s", "75.5 s", "10 min 0 s", "1 h 56 min"]
