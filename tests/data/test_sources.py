"""Local formats: what they give, and what they say of bad input."""

import json

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.data.columns import ColumnRecords
from tljax.data.processors import ImageProcessor
from tljax.data.sources import open_source

CSV = 'review,kind\n"good, really",pos\nbad,neg\n"two\nlines",pos\n'
COLUMNS = {"text": "review", "label": "kind"}


@pytest.fixture
def write(tmp_path):
    """(name, content) → path of a written file."""

    def make(name: str, content: str | bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def _all(source) -> list[dict]:
    return [source.records[i] for i in range(len(source.records))]


def test_csv_names_become_sorted_classes(write):
    source = open_source(f"csv:{write('a.csv', CSV)}", columns=COLUMNS)
    assert source.classes == ("neg", "pos")
    assert _all(source) == [
        {"id": 0, "text": "good, really", "label": 1},
        {"id": 1, "text": "bad", "label": 0},
        {"id": 2, "text": "two\nlines", "label": 1},
    ]
    assert source.records.labels() == [1, 0, 1]


def test_one_table_in_four_formats_gives_the_same_records(write, tmp_path):
    rows = [("one", 0), ("two", 2), ("three", 1)]
    write("t.csv", "text,label\n" + "".join(f"{t},{n}\n" for t, n in rows))
    write("t.tsv", "text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in rows))
    write("t.jsonl", "".join(json.dumps({"text": t, "label": n}) + "\n\n" for t, n in rows))
    np.savez(tmp_path / "t.npz", text=np.array([t for t, _ in rows]), label=np.array([n for _, n in rows]))
    found = [open_source(f"{kind}:{tmp_path}/t.{kind}") for kind in ("csv", "tsv", "jsonl", "npz")]
    for source in found:
        assert source.classes == ("0", "1", "2")
        assert _all(source) == [{"id": i, "text": t, "label": n} for i, (t, n) in enumerate(rows)]


def test_paths_are_tried_in_the_data_folder(write, tmp_path, monkeypatch):
    write("sub/a.csv", CSV)
    assert len(open_source("csv:sub/a.csv", data_dir=tmp_path, columns=COLUMNS).records) == 3
    monkeypatch.setenv("TLJAX_DATA", str(tmp_path))
    assert len(open_source("csv:$TLJAX_DATA/sub/a.csv", columns=COLUMNS).records) == 3
    with pytest.raises(UserError, match=r"no sub/b\.csv and no .*sub/b\.csv"):
        open_source("csv:sub/b.csv")


@pytest.mark.parametrize("spec", ["csv:{folder}", "csv:{folder}/{{split}}.csv"])
def test_splits_are_files_and_share_their_classes(write, tmp_path, spec):
    write("d/train.csv", "text,label\na,x\nb,y\nc,z\n")
    write("d/test.csv", "text,label\na,z\n")
    spec = spec.format(folder=tmp_path / "d")
    assert open_source(spec, split="test").classes == ("x", "y", "z")
    assert open_source(spec, split="test").records[0]["label"] == 2
    with pytest.raises(UserError, match=r"no split 'tset'. Did you mean 'test'\? Accepted: test, train"):
        open_source(spec, split="tset")


def test_a_single_file_has_one_split(write):
    path = write("a.csv", CSV)
    assert len(open_source(f"csv:{path}", split="all", columns=COLUMNS).records) == 3
    with pytest.raises(UserError, match="no split 'test': it is one file"):
        open_source(f"csv:{path}", split="test", columns=COLUMNS)


def test_scores_fractions_and_several_classes(write, tmp_path):
    path = write("s.csv", "text,score\na,1\nb,2\n")
    score = open_source(f"csv:{path}")
    assert [r["label"] for r in _all(score)] == [1.0, 2.0]
    assert score.classes is None
    assert isinstance(score.records[0]["label"], float)
    path = write("f.csv", "text,label\na,1\nb,2.5\n")
    fraction = open_source(f"csv:{path}")
    assert (fraction.classes, fraction.records[0]["label"]) == (None, 1.0)
    lines = '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n'
    several = open_source(f"jsonl:{write('m.jsonl', lines)}")
    assert several.classes == ("x", "y")
    assert [r["label"] for r in _all(several)] == [[0, 1], []]
    np.savez(tmp_path / "m.npz", image=np.zeros((2, 4, 4, 3), np.uint8), label=np.array([[0, 1, 1], [1, 0, 0]]))
    marked = open_source(f"npz:{tmp_path / 'm.npz'}")
    assert [r["label"] for r in _all(marked)] == [[1, 2], [0]]


def test_given_classes_set_the_order(write):
    path = write("a.csv", CSV)
    source = open_source(f"csv:{path}", columns=COLUMNS, classes=("pos", "neg", "mixed"))
    assert source.classes == ("pos", "neg", "mixed")
    assert [r["label"] for r in _all(source)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (CSV, {"columns": {"text": "revue"}}, r"no column 'revue' for 'text'. Did you mean 'review'\? Accepted: kind"),
        (CSV, {"columns": {"txt": "review"}}, r"'txt' is no part of a record. Did you mean 'text'"),
        (CSV, {}, r"no column is named as the text or the image(.|\n)*The columns are: review, kind"),
        (CSV, {"columns": COLUMNS, "classes": ("neg",)}, r"line 2: the label 'pos' is out of range"),
        ("text,label\na,0\nb,7\n", {"classes": ("x", "y")}, r"line 3: the label 7 is out of range"),
        ("text,label\na,0\nb,-1\n", {}, r"line 3: the label -1 is negative"),
        ("text,label\na,0\nb,\n", {}, r"line 3: the label is missing"),
        ("text,label\na,0.5\nb,many\n", {}, r"line 3: the label 'many' is not a number"),
        ("text,score\na,0.5\nb,many\nc,nan\n", {}, r"line 3: 'many' is not a number(.|\n)*line 4"),
        ("text,label\na,0\nb\n", {}, r"line 3: 1 fields, and the header has 2"),
        ("text,label\n", {}, r"holds no records"),
        ("", {}, r"no column is named"),
        (b"text,label\n\xff\xfe,0\n", {}, r"UTF-8"),
    ],
)
def test_a_bad_csv_is_an_error_that_says_where(write, content, options, message):
    with pytest.raises(UserError, match=message):
        open_source(f"csv:{write('bad.csv', content)}", **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"text": "a"}\n{"text": 5}\n', "line 2: the text in 'text' is 5"),
        ('{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: the label is missing"),
    ],
)
def test_a_bad_jsonl_is_an_error_that_says_where(write, content, message):
    with pytest.raises(UserError, match=message):
        open_source(f"jsonl:{write('bad.jsonl', content)}")


def test_npz_never_unpickles_and_columns_agree(tmp_path, write):
    np.savez(tmp_path / "p.npz", text=np.array([{"a": 1}], object))
    with pytest.raises(UserError, match=r"p\.npz cannot be read as npz \(without pickles\)"):
        open_source(f"npz:{tmp_path / 'p.npz'}")
    np.savez(tmp_path / "l.npz", image=np.zeros((3, 4, 4), np.uint8), label=np.zeros(2, int))
    with pytest.raises(UserError, match=r"different lengths: \{'image': 3, 'label': 2\}"):
        open_source(f"npz:{tmp_path / 'l.npz'}")
    with pytest.raises(UserError, match="cannot be read as npz"):
        open_source(f"npz:{write('x.npz', b'PK nonsense')}")


def test_image_folder_with_and_without_splits(write, tmp_path, photo):
    for name in ("plain/cat/b.png", "plain/cat/a.JPG", "plain/dog/c.png", "plain/dog/notes.txt"):
        write(name, photo(8, 9, "JPEG" if name.endswith("JPG") else "PNG"))
    source = open_source(f"image_folder:{tmp_path / 'plain'}")
    assert source.classes == ("cat", "dog")
    assert [(r["id"], r["label"]) for r in _all(source)] == [("cat/a.JPG", 0), ("cat/b.png", 0), ("dog/c.png", 1)]
    assert source.records.labels() == [0, 0, 1]
    write("split/train/cat/a.png", photo(8, 8))
    write("split/train/owl/a.png", photo(8, 8))
    write("split/test/cat/b.png", photo(8, 8))
    test = open_source(f"image_folder:{tmp_path / 'split'}", split="test")
    assert (test.classes, len(test.records), test.records[0]["id"]) == (("cat", "owl"), 1, "test/cat/b.png")
    with pytest.raises(UserError, match=r"no split 'val'. .*Accepted: test, train"):
        open_source(f"image_folder:{tmp_path / 'split'}", split="val")
    with pytest.raises(UserError, match="'owl' is not one of the classes"):
        open_source(f"image_folder:{tmp_path / 'split'}", classes=("cat",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_source(f"image_folder:{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="there is no "):
        open_source(f"image_folder:{tmp_path / 'absent'}")


def test_a_corrupt_image_is_named_when_it_is_read(write, tmp_path, photo):
    whole = photo(64, 64, "JPEG")
    write("d/cat/good.jpg", whole)
    write("d/cat/torn.jpg", whole[: len(whole) // 2])
    write("d/cat/text.png", "not an image")
    source, processor = open_source(f"image_folder:{tmp_path / 'd'}"), ImageProcessor(size=8)
    good, text, torn = _all(source)
    assert processor.example(good)["pixel_values"].shape == (8, 8, 3)
    for record in (text, torn):
        with pytest.raises(UserError, match=f"The image '{record['id']}' cannot be decoded"):
            processor.example(record)
    (tmp_path / "d/cat/good.jpg").unlink()
    with pytest.raises(UserError, match=r"good\.jpg cannot be read"):
        source.records[0]


def test_a_csv_of_image_files(write, photo):
    write("img/a.png", photo(8, 8))
    path = write("list.csv", "file,label\nimg/a.png,cat\n")
    record = open_source(f"csv:{path}", columns={"image": "file", "label": "label"}).records[0]
    assert (record["id"], record["label"], record["image"]) == ("img/a.png", 0, photo(8, 8))


@pytest.mark.parametrize("spec", ["csv", "csv:", "parquet:x", "reviews.csv"])
def test_a_spec_that_is_none(spec):
    with pytest.raises(UserError, match=r"Accepted: .*csv, .*image_folder, jsonl"):
        open_source(spec)


def own_opener(rest, *, split, data_dir, columns, classes):
    """An opener outside of tljax, for the test below."""
    from pathlib import Path

    from tljax.base.types import Source

    return Source(ColumnRecords({"text": [rest, split]}, 2, Path()), None, "own")


def test_an_opener_of_one_s_own(monkeypatch):
    import sys
    import types

    package, module = types.ModuleType("mine"), types.ModuleType("mine.data")
    module.own_opener = own_opener
    monkeypatch.setitem(sys.modules, "mine", package)
    monkeypatch.setitem(sys.modules, "mine.data", module)
    assert open_source("mine.data:own_opener:hello:there").records[0]["text"] == "hello:there"
