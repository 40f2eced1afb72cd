"""Our TFDS builders on the real files: counts, classes, order; preparation is whole or not at all."""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tljax.base.errors import UserError
from tljax.data import BUILDERS
from tljax.data.builders.raw import Raw, fetch, read_files
from tljax.data.prepare import prepare, prepared_folder
from tljax.data.sources import open_source


def _pixels(record: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"])))


def test_scipy_docs_are_the_issue_s_texts_and_give_no_module_away():
    source = open_source("tljax:scipy_docs", split="all")
    records = [source.records[i] for i in range(len(source.records))]
    assert abs(len(records) - 2080) < 40
    assert len({r["text"] for r in records}) == len(records)
    assert not any(f"scipy.{name}" in r["text"] for r in records for name in source.classes)
    assert set(Counter(r["label"] for r in records)) == set(range(8))
    for record in records[::97]:
        assert record["id"].split(".")[1] == source.classes[record["label"]]
    assert not any("(" in r["text"].split()[0] and r["text"].endswith(")") for r in records)


def test_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    data, source = load_digits(), open_source("tljax:digits")
    assert len(source.records) == 1797
    for i in (0, 7, 1796):
        record = source.records[i]
        assert record["label"] == data.target[i]
        np.testing.assert_array_equal(np.rint(_pixels(record) * (16 / 255)), data.images[i])


@pytest.mark.parametrize(
    ("spec", "counts", "classes"),
    [
        ("tljax:usps", {"train": 7291, "test": 2007}, 10),
        ("tljax:hymenoptera", {"train": 244, "validation": 153}, 2),
        ("tljax:cifar10", {"train": 10000, "test": 10000}, 10),
        ("tljax:banking77", {"train": 10003, "test": 3080}, 77),
        ("tljax:tinyshakespeare", {"train": 1, "validation": 1, "test": 1}, None),
        ("tljax:trec", {"train": 5452, "test": 500}, 6),
        ("tljax:fsdd", {"train": 2700, "test": 300, "train_theo": 450, "test_theo+test_lucas": 100}, 10),
        ("tljax:stsb", {"train": 5749, "validation": 1500, "test": 1379}, None),
        ("tljax:stsb:de", {"train": 5749, "validation": 1500, "test": 1379}, None),
    ],
)
def test_counts_and_classes(data_dir, spec, counts, classes):
    for split, count in counts.items():
        source = open_source(spec, split=split, data_dir=data_dir)
        assert len(source.records) == count
        assert source.classes is None if classes is None else len(source.classes) == classes


def test_the_publisher_s_order_and_content_are_kept(data_dir):
    trec = open_source("tljax:trec", split="test", data_dir=data_dir)
    assert trec.records[0] == {"id": 0, "text": "How far is it from Denver to Aspen ?", "label": 5}
    assert trec.classes[trec.records[2]["label"]] == "human"  # Who was Galileo ?
    banking = open_source("tljax:banking77", split="train", data_dir=data_dir)
    assert banking.records[0]["text"] == "I am still waiting on my card?"
    assert banking.classes[banking.records[10002]["label"]] == "country_support"
    pair = open_source("tljax:stsb", split="test", data_dir=data_dir).records[1]
    assert pair["text_b"] == "A group of boys are playing soccer on the beach."
    assert pair["label"] == pytest.approx(3.6)
    usps = open_source("tljax:usps", data_dir=data_dir).records[0]
    assert usps["label"] == 6
    assert _pixels(usps).shape == (16, 16)
    photo = open_source("tljax:hymenoptera", data_dir=data_dir).records[200]
    assert photo["image"] == Path(data_dir, "hymenoptera", photo["id"]).read_bytes()
    small = open_source("tljax:cifar10", split="test", data_dir=data_dir).records[9999]
    assert small["id"] == "test/truck/0999.jpg"
    assert _pixels(small).shape == (32, 32, 3)


def test_strings_of_digits_are_clips_put_together(data_dir):
    import soundfile

    source = open_source("tljax:fsdd_strings", split="validation", data_dir=data_dir)
    digits = open_source("tljax:fsdd_strings:digits", split="validation_theo", data_dir=data_dir)
    records = [source.records[i] for i in range(len(source.records))]
    own = [record for record in records if record["speaker"] == "theo"]
    assert [digits.records[i]["id"] for i in range(len(digits.records))] == [record["id"] for record in own]
    assert digits.records[0]["target_text"].replace(" ", "").isdigit()
    used = Counter((r["speaker"], clip) for r in records for clip in r["id"].split("_")[2].split("-"))
    assert len({record["id"] for record in records}) == len(records)
    assert set(used.values()) == {4} and len(used) == 300
    assert {int(clip.split(".")[1]) for _, clip in used} == set(range(5, 10))
    assert {len(r["target_text"].split()) for r in records} == {1, 2, 3}

    clips = open_source("tljax:fsdd", data_dir=data_dir).records
    clips = {record["id"]: record["audio"] for record in (clips[i] for i in range(len(clips)))}
    record = records[5]
    whole, rate = soundfile.read(io.BytesIO(record["audio"]), dtype="int16")
    speaker, _, said = record["id"].split("_")
    start = 0
    for clip in said.split("-"):
        digit, take = clip.split(".")
        part = soundfile.read(io.BytesIO(clips[f"{digit}_{speaker}_{take}"]), dtype="int16")[0]
        places = range(start + int(0.02 * rate), start + int(0.15 * rate) + 1)
        start = next(i for i in places if np.array_equal(whole[i : i + len(part)], part)) + len(part)
    assert 0.02 * rate - 1 <= len(whole) - start <= 0.15 * rate


def test_other_recordings_are_refused():
    from tljax.data.builders.fsdd import read_clips

    with pytest.raises(UserError, match="found 1 by anna"):
        read_clips({"3_anna_0.wav": b""})


def test_mnist_files_are_read_and_verified(data_dir):
    from tljax.data.builders.mnist import FILES, RAW, Mnist, parse_idx

    files = read_files(RAW, [("", data_dir / "mnist")])
    images, labels = (parse_idx(files[name], name) for name in FILES["test"])
    assert images.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    _, example = next(Mnist._generate_examples(None, images, labels))
    np.testing.assert_array_equal(_pixels(example), images[0])
    with pytest.raises(UserError, match="holds 3 values"):
        parse_idx(b"\0\0\x08\x01\0\0\0\x04abc", "short")


@pytest.mark.long
def test_mnist_is_prepared(data_dir):
    source = open_source("tljax:mnist", data_dir=data_dir)
    assert len(source.records) == 60000
    assert [source.records[i]["label"] for i in range(5)] == [5, 0, 4, 1, 9]


def test_usps_in_the_publisher_s_format_equals_the_h5(data_dir):
    from tljax.data.builders.usps import parse_h5, parse_libsvm

    pixels, digits = parse_h5((data_dir / "usps/usps.h5").read_bytes(), "test")
    lines = [
        f"{digit + 1} " + " ".join(f"{k + 1}:{2 * x - 1:.3f}" for k, x in enumerate(row))
        for row, digit in zip(pixels[:3], digits[:3], strict=True)
    ]
    again, same = parse_libsvm("\n".join(lines).encode())
    np.testing.assert_allclose(again, pixels[:3], atol=1e-3)
    np.testing.assert_array_equal(same, digits[:3])


def test_every_builder_says_where_it_comes_from():
    from tljax.base.tables import lookup

    for name in BUILDERS:
        cls = lookup(BUILDERS, name, what="data set")
        assert cls.name == name
        assert hasattr(cls, "PACKAGE") or all(url.startswith("https://") for url in cls.RAW.urls.values())


def test_files_that_are_not_the_published_ones_are_refused(tmp_path, cache):
    folder = tmp_path / "text" / "sentconv"
    folder.mkdir(parents=True)
    (folder / "TREC.train.all").write_bytes(b"0 What ?\n")
    with pytest.raises(UserError, match=r"TREC\.test\.all is missing(.|\n)*TREC\.train\.all is not the published"):
        open_source("tljax:trec", data_dir=tmp_path)
    assert not list(cache.rglob("preparing-*"))
    assert not list(cache.glob("tfds/*/trec/*/*9999*"))


def test_a_broken_archive_is_named(tmp_path, data_dir):
    whole = (data_dir / "text/sentconv.tar.xz").read_bytes()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "sentconv.tar.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"sentconv\.tar\.xz cannot be read"):
        open_source("tljax:trec", data_dir=tmp_path)


def test_archives_write_nothing_wherever_their_members_point(tmp_path):
    place = tmp_path / "in" / "evil.tar"
    place.parent.mkdir()
    with tarfile.open(place, "w") as archive:
        member = tarfile.TarInfo("../../x/good.txt")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"ok"))
        link = tarfile.TarInfo("x/bad.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    raw = Raw(folder="evil", wanted=r".*/((?:good|bad)\.txt)", urls={})
    assert read_files(raw, [("", place)]) == {"good.txt": b"ok"}
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [place]


def test_absent_files_without_a_network_name_folder_and_publisher(monkeypatch, tmp_path):
    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=r"neither in the data folder(.|\n)*harvardnlp(.|\n)*--data_dir"):
        open_source("tljax:trec", data_dir=tmp_path)


def test_downloaded_files_are_read_like_present_ones(data_dir, tmp_path, monkeypatch):
    from tljax.data.builders.trec import RAW

    monkeypatch.setattr("tljax.data.builders.raw._reachable", lambda urls: None)
    found = read_files(RAW, [("", data_dir / "text/sentconv.tar.xz")])
    for name, content in found.items():
        (tmp_path / f"cached-{name}").write_bytes(content)

    class Manager:
        @property
        def manual_dir(self):
            raise AssertionError

        def download(self, urls):
            return {name: tmp_path / f"cached-{name}" for name in urls}

    assert fetch(RAW, Manager()) == found


def test_a_failed_preparation_leaves_nothing(cache, monkeypatch):
    from tljax.data.builders.digits import Digits

    def failing(self):
        yield 0, {"image": b"", "label": 0}
        raise RuntimeError("disk full")

    monkeypatch.setenv("TLJAX_CACHE", str(cache / "failing"))
    monkeypatch.setattr(Digits, "_generate_examples", failing)
    with pytest.raises(Exception, match="disk full"):
        prepared_folder("digits")
    assert not [p for p in (cache / "failing" / "tfds").rglob("*") if p.is_file()]


def test_two_processes_prepare_the_same_set_at_once(tmp_path):
    code = (
        "from tljax.data.sources import open_source\n"
        "source = open_source('tljax:digits')\n"
        "print(len(source.records), source.records[1796]['label'])"
    )
    environment = {"TLJAX_CACHE": str(tmp_path), "PATH": ""}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["1797 8"] * 2
    assert not list(tmp_path.rglob("preparing-*"))


def test_neither_tensorflow_nor_torch_is_imported_and_nothing_is_printed(tmp_path):
    from tljax.data.builders.digits import Digits

    prepare(Digits, tmp_path / "tfds")
    code = (
        "import sys\n"
        "from tljax.data.sources import open_source\n"
        f"sources = [open_source('tljax:digits'), open_source('tfds:digits', data_dir={str(tmp_path / 'tfds')!r})]\n"
        "assert sources[0].records[3] == sources[1].records[3]\n"
        "sys.exit(sorted({'tensorflow', 'torch', 'jax'} & set(sys.modules)) or 0)"
    )
    environment = {"TLJAX_CACHE": str(tmp_path / "cache"), "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'trec'"):
        open_source("tljax:trek")
    with pytest.raises(UserError, match="no config 'fr'"):
        open_source("tljax:stsb:fr")
    with pytest.raises(UserError, match=r"no split 'tset'.*\n?.*Accepted: all, train"):
        open_source("tljax:digits", split="tset")
    with pytest.raises(UserError, match=r"data folder .*nowhere does not exist"):
        open_source("tljax:digits", data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no column 'picture' for 'image'"):
        open_source("tljax:digits", columns={"image": "picture"})
    with pytest.raises(UserError, match=r"TFDS has no 'mnisst'.*Did you mean 'mnist'"):
        open_source("tfds:mnisst")


def test_tfds_features_find_their_roles_by_type(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class TinyPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny_pairs"
        VERSION = tfds.core.Version("1.2.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = {
                "sentence1": tfds.features.Text(),
                "sentence2": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
                "idx": np.int32,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"sentence1": f"é{i}", "sentence2": f"b{i}", "label": i % 2, "idx": i}

    prepare(TinyPairs, tmp_path / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    source = open_source("tfds:tiny_pairs")
    record = next(r for r in map(source.records.__getitem__, range(4)) if r["text"] == "é3")
    assert (record["text_b"], record["label"], source.classes) == ("b3", 1, ("no", "yes"))
    assert source.records.__getitems__([0, 2])[1] == source.records[2]
    assert len(open_source("tfds:tiny_pairs:1.2.0", split="train[:50%]").records) == 2
    one = open_source("tfds:tiny_pairs", columns={"text": "sentence2", "score": "idx"})
    assert (sorted(one.records[0]), one.classes) == (["id", "label", "text"], None)
    with pytest.raises(UserError, match=r"no column 'sentence3' for 'text'. Did you mean 'sentence[12]'"):
        open_source("tfds:tiny_pairs", columns={"text": "sentence3"})
    with pytest.raises(UserError, match="has no split"):
        open_source("tfds:tiny_pairs", split="trian[:50%]")


def test_short_texts_have_official_splits_or_splits_that_leak_nothing(data_dir):
    from tljax.data.builders.sentconv import SETS, key_of

    counts = {
        "mr": (7676, 993, 1993),
        "subj": (7105, 948, 1947),
        "cr": (2633, 350, 792),
        "mpqa": (7550, 972, 2084),
        "trec": (5452, 500),
        "sst2": (6920, 872, 1821),
        "sst5": (8544, 1101, 2210),
    }
    texts, firsts, shares = {}, {}, {}
    for name, wanted in counts.items():
        splits = ("train", "validation", "test") if len(wanted) == 3 else ("train", "test")
        for split, count in zip(splits, wanted, strict=True):
            source = open_source(f"tljax:sentconv:{name}", split=split, data_dir=data_dir)
            records = [source.records[i] for i in range(len(source.records))]
            assert (len(records), source.classes) == (count, SETS[name].classes)
            texts[name, split] = {key_of(record["text"]) for record in records}
            firsts[name, split] = records[0]["text"], source.classes[records[0]["label"]]
            share = np.bincount([record["label"] for record in records]) / count
            assert name == "trec" or np.abs(share - shares.setdefault(name, share)).max() < 0.05
    for (one, split), keys in texts.items():
        for (two, other), more in texts.items():
            if split != other and "mr" in (one, two):
                assert not keys & more, "a film review is in one split of all sets"
    assert len(texts["mr", "test"] & texts["sst5", "test"]) > 1500
    assert not texts["mpqa", "train"] & texts["mpqa", "test"]
    assert firsts["subj", "train"] == (
        "smart and alert , thirteen conversations about one thing is a small gem .",
        "subjective",
    )
    assert firsts["trec", "test"] == ("How far is it from Denver to Aspen ?", "number")
    assert firsts["sst5", "train"][1] == "very positive" and firsts["cr", "train"][1] == "negative"
    for name, word in (("sst2", "béart"), ("mr", "cliché"), ("mr", "…")):
        records = open_source(f"tljax:sentconv:{name}", data_dir=data_dir).records
        assert any(word in records[i]["text"] for i in range(len(records))), "each file is read in its own encoding"


def test_mnistm_is_a_digit_over_a_patch_of_a_photograph(data_dir):
    from tljax.data.builders.mnist import FILES, parse_idx
    from tljax.data.builders.mnistm import DIGITS, RAW, Mnistm, decode_photos
    from tljax.data.images import ImageProcessor

    files = read_files(DIGITS, [("", data_dir / "mnist")])
    digits, labels = (parse_idx(files[name], name)[:40] for name in FILES["test"])
    photos = decode_photos(read_files(RAW, [("", data_dir / "bsds500")]))
    assert len(photos) == 200 and {photo.shape for photo in photos} == {(321, 481, 3), (481, 321, 3)}
    examples = [example for _, example in Mnistm._generate_examples(None, digits, labels, photos, 1)]
    assert [example["label"] for example in examples] == labels.tolist()
    images = [_pixels(example) for example in examples]
    # Where the digit is 0 the photograph is seen as it is, at one place of one photograph.
    image, digit, blank = images[0], digits[0], np.argwhere(digits[0] == 0)
    spots = []
    for photo in photos:
        height, width = photo.shape[0] - 27, photo.shape[1] - 27
        row, column = blank[0]
        places = np.argwhere((photo[row : row + height, column : column + width] == image[row, column]).all(axis=-1))
        for row, column in blank[1::50]:
            places = places[(photo[places[:, 0] + row, places[:, 1] + column] == image[row, column]).all(axis=-1)]
        spots += [photo[top : top + 28, left : left + 28] for top, left in places]
    assert any((np.abs(spot - 1.0 * digit[..., None]) == image).all() for spot in spots)
    shorter = Mnistm._generate_examples(None, digits[:7], labels[:7], photos, 1)
    assert [example["image"] for _, example in shorter] == [example["image"] for example in examples[:7]]
    assert next(Mnistm._generate_examples(None, digits, labels, photos, 0))[1]["image"] != examples[0]["image"]
    with pytest.raises(UserError, match="200 training photographs, and bsds500 holds 1"):
        decode_photos({"1.jpg": b""})
    grey = ImageProcessor(size=28, channels="RGB", mean=(0.0,), std=(1.0,)).example({"image": digits[0]})
    np.testing.assert_allclose(grey["pixel_values"], np.repeat(digits[0][..., None], 3, axis=-1) / 255, rtol=1e-6)


def test_mnistm_says_that_it_is_made_of_mnist(data_dir, tmp_path, monkeypatch):
    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    (tmp_path / "bsds500").symlink_to(data_dir / "bsds500")
    with pytest.raises(UserError, match=r"made of MNIST, which is neither(.|\n)*photographs into bsds500/train"):
        open_source("tljax:mnistm", data_dir=tmp_path)


def test_omniglot_has_its_minimal_sets_and_its_runs(data_dir):
    from tljax.data.builders.omniglot import run_images

    sources = {i: open_source("tljax:omniglot", split=f"background_small{i}", data_dir=data_dir) for i in (1, 2)}
    for i, characters in ((1, 136), (2, 156)):
        records = [sources[i].records[k] for k in range(20 * characters)]
        assert len(sources[i].records) == len(records) and len(sources[i].classes) == 242
        assert set(Counter(record["label"] for record in records).values()) == {20}
        for record in records[::37]:
            assert record["id"].rpartition("/")[0] == sources[i].classes[record["label"]]
    # The publisher's order: this is what the config's slices of characters rest on.
    for i, where in ((1, slice(2200, 2720)), (2, slice(1420, 1940))):
        alphabets = [sources[i].records[k]["id"].split("/")[0] for k in range(len(sources[i].records))]
        assert set(alphabets[where]) == {"Latin"} and alphabets.count("Latin") == 520
    runs = open_source("tljax:omniglot:runs", split="runs", data_dir=data_dir)
    records = [runs.records[i] for i in range(800)]
    assert (len(runs.records), runs.classes, _pixels(records[0]).shape) == (800, None, (105, 105))
    each = Counter((record["episode"], record["role"], record["label"]) for record in records)
    assert each == Counter((run, role, k) for run in range(1, 21) for role in ("support", "query") for k in range(20))
    by_id = {record["id"]: record for record in records}
    with zipfile.ZipFile(data_dir / "omniglot" / "all_runs.zip") as archive:
        for line in archive.read("run07/class_labels.txt").decode().split("\n")[:20]:
            test, train = (by_id[name.removesuffix(".png")] for name in line.split())
            assert (test["role"], train["role"]) == ("query", "support") and test["label"] == train["label"]
            assert test["image"] == archive.read(f"{test['id']}.png")
    with pytest.raises(UserError, match="run 3 has 20 classes with a training and a test image each"):
        run_images({"run03/class_labels.txt": b""}, 3)


def test_amazon_s_reviews_are_split_by_their_text(data_dir):
    from tljax.data.builders.amazon_reviews import DOMAINS, split_of

    counts = {"books": (1628, 372), "dvd": (1596, 404), "electronics": (1593, 407), "kitchen": (1611, 389)}
    assert tuple(counts) == DOMAINS
    texts = {}
    for domain, wanted in counts.items():
        labels = Counter()
        for split, count in zip(("train", "test"), wanted, strict=True):
            source = open_source(f"tljax:amazon_reviews:{domain}", split=split, data_dir=data_dir)
            records = [source.records[i] for i in range(len(source.records))]
            assert (len(records), source.classes) == (count, ("negative", "positive"))
            texts[domain, split] = [record["text"] for record in records]
            labels.update(record["label"] for record in records)
        assert labels == {0: 1000, 1: 1000}
    for domain in DOMAINS:
        assert len(set(texts[domain, "train"])) < len(texts[domain, "train"]), "there are copies"
    train, test = ({text for d in DOMAINS for text in texts[d, split]} for split in ("train", "test"))
    assert not train & test
    assert texts["books", "train"][0].startswith("THis book was horrible.  If it was possible")
    assert any(text.startswith("We have three dogs") for text in train | test)
    assert split_of("One more -- like it!") == split_of("one more, LIKE it")
