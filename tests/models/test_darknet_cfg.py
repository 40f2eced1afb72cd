"""What the reader of .cfg texts refuses, and with which words."""

import re

import pytest

from tests.models.darknet import EVERYTHING, NET, conv, detector, section
from tljax.base.errors import UserError
from tljax.models.darknet_cfg import parse
from tljax.models.yolo import YoloConfig, configure, detectors, parts

HEAD = detector("0,1,2")


def test_sections_are_numbered_and_measured():
    description = parse(EVERYTHING)
    assert (description.size, description.channels, description.multiple) == ((48, 64), 3, 8)
    shapes = {s.number: (s.kind, s.reads, s.shape) for s in description.sections}
    assert shapes[0] == ("convolutional", (-1,), (24, 32, 8))
    assert shapes[5] == ("convolutional", (4,), (14, 18, 8))
    assert shapes[7] == ("shortcut", (6, 3), (12, 16, 8))
    assert shapes[13] == ("route", (12, 10, 9), (6, 8, 36))
    assert shapes[20] == ("route", (19, 7), (12, 16, 18))
    assert description.sections[0].line == 9 and hash(description) == hash(parse(EVERYTHING))


def test_stages_and_detectors():
    """A stage is a convolution with what follows; the detectors and their convolutions are in none."""
    config = YoloConfig(EVERYTHING)
    found = {part.name: [s.number for s in part.sections] for part in parts(config)}
    assert found["layer3"] == [3, 4] and found["layer9"] == [9, 10, 11, 12, 13]
    assert found["layer21"] == [18, 19, 20, 21, 22]
    assert sorted(n for numbers in found.values() for n in numbers) == [*range(16), *range(18, 23)]
    first, second = detectors(config)
    assert first.source.number == 15 and first.anchors == ((9, 5), (14, 20)) and second.anchors == ((4, 6),)


def test_writing_is_read_as_darknet_reads_it():
    """White space anywhere, comments, aliases of sections, Windows' line ends."""
    text = (NET + conv(4, 3) + HEAD).replace("[convolutional]", "[conv]").replace("=", " = ").replace("\n", "\r\n")
    text = ";comment\r\n" + text.replace("filters = 4", "filters = 4  # few")
    plain = parse(NET + conv(4, 3) + HEAD)
    assert [s.options for s in parse(text).sections] == [s.options for s in plain.sections]


BAD = {
    "unknown section": (NET + section("convolutionl", filters=3), r"line 8: .*\[convolutionl\].*'convolutional'"),
    "unknown option": (
        NET + conv(4, filtres=3) + HEAD,
        r"line 15: \[convolutional\] has no option 'filtres'.*'filters'",
    ),
    "unknown activation": (NET + conv(4, 1, "leeky") + HEAD, r"line 14: the activation 'leeky'.*'leaky'"),
    "no number": (NET + conv(4, "3x3") + HEAD, r"line 11: size is '3x3', which is no whole number"),
    "not implemented": (NET + conv(4, dilation=2) + HEAD, r"line 15: dilation is 2.*Accepted: 1"),
    "no net": (conv(4), r"must begin with one \[net\]"),
    "nothing": ("", r"must begin with one \[net\]"),
    "no size": (section("net", width=32) + conv(4), r"line 1: \[net\] needs height"),
    "no section": (NET, "no section after"),
    "no option": (NET + "filters\n", "line 8: 'filters' is no `name=value`"),
    "outside": ("width=3\n" + NET, "line 1: 'width=3' stands before"),
    "twice": (NET + "[maxpool]\nsize=2\nsize=3\n", "line 10: size was given on line 9"),
    "route ahead": (NET + conv(4) + section("route", layers="-1,5"), r"line 16: \[route\] reads section 5.*number 1"),
    "route behind": (NET + conv(4) + section("route", layers=-7), r"line 16: \[route\] reads section -6"),
    "route of sizes": (
        NET + conv(4) + conv(4, 3, stride=2) + section("route", layers="-1,-2"),
        r"line 24: \[route\] joins maps of different sizes.*\(24, 32, 4\), \(48, 64, 4\)",
    ),
    "route of groups": (NET + conv(5) + section("route", layers=-1, groups=2), r"\[route\] takes group 0 of 2"),
    "shortcut of shapes": (
        NET + conv(4) + conv(5) + section("shortcut", **{"from": -2}),
        r"line 24: \[shortcut\] adds maps of different shapes.*\(48, 64, 5\) and \(48, 64, 4\)",
    ),
    "groups": (NET + conv(4, groups=2), r"\[convolutional\] has groups=2.* 3 channels"),
    "too small": (NET + conv(4, 99, pad=0), r"\[convolutional\] would make a map of \(-50, -34, 4\)"),
    "filters": (
        (NET + conv(4) + HEAD).replace("filters=24", "filters=25"),
        r"line 23: \[yolo\] has 3 anchors and 3 classes.*filters=24; it has 25",
    ),
    "mask": (NET + conv(4) + detector("0,3"), r"\[yolo\] has the mask \(0, 3\), and its anchors are 0 to 2"),
    "anchors": ((NET + conv(4) + HEAD).replace("num=3", "num=4"), r"num=4 and 6 numbers in anchors"),
    "activation": (
        (NET + conv(4) + HEAD).replace("activation=linear", "activation=leaky"),
        r"\[yolo\] has new_coords=0.*line 16 needs activation=linear",
    ),
    "after a detector": (NET + conv(4) + HEAD + conv(4), r"reads section 2 .*whose result is boxes"),
    "of a detector": (NET + conv(4) + HEAD + section("route", layers=1), r"reads section 1 .*whose result is boxes"),
    "no backbone": (NET + HEAD, r"\[yolo\] has no backbone"),
    "pool": (NET + section("maxpool", size=2, padding=9), "maximum of nothing"),
    "probability": (NET + conv(4) + section("dropout", probability=1.5), "probability from 0 to below 1"),
    "multiple": (
        NET.replace("width=64", "width=65") + conv(4, 3, stride=2) + HEAD,
        "line 3: width is 65; this network needs a multiple of 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_texts_are_refused_with_their_lines(name):
    text, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        parse(text, "my.cfg")
    assert str(caught.value).startswith("my.cfg describes no network that can be built:")


def test_all_faults_of_a_text_come_at_once():
    with pytest.raises(UserError) as caught:
        parse(NET + conv(4, 1, "leeky", filtres=3) + section("yola"))
    assert len(re.findall(r"- line \d+:", str(caught.value))) == 3


def test_a_detector_is_needed_and_one_number_of_classes():
    with pytest.raises(UserError, match=r"no \[yolo\] section"):
        configure({"cfg": NET + conv(4)})
    two = NET + conv(4) + HEAD + section("route", layers=0) + detector("0", classes=4)
    with pytest.raises(UserError, match="one number of classes; they have 3 on line 23, 4 on line"):
        configure({"cfg": two})
    with pytest.raises(UserError, match="cfg is 3; it must be a text"):
        configure({"cfg": 3})
