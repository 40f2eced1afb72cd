"""Comparisons: intervals as SciPy has them, and sentences that say no more than the numbers."""

import math

import pytest
from rich.console import Console

from tljax.base.errors import UserError
from tljax.reports.comparison import (
    comparison_table,
    markdown_table,
    ranked,
    spread_of,
    verdict,
    write_comparison,
)

ROWS = [
    {
        "name": "fine-tuning",
        "values": [0.741, 0.755, 0.712],
        "seconds": [31.0, 33.0, 32.0],
        "live_parameters": 22716680,
    },
    {"name": "linear probe", "values": [0.834, 0.842, 0.781], "seconds": 4.0, "live_parameters": 3080},
    {"name": "TF-IDF", "values": [0.86, 0.79, 0.70]},
]


def test_the_sentence_separates_what_is_clear_from_what_is_not():
    said = verdict(ROWS)
    assert said.startswith("Linear probe reaches 81.9 ± 3.3 %, the best of 3.")
    assert "It wins by 8.3 ± 1.2 points over fine-tuning (95 % interval 5.2 to 11.4)" in said
    assert "Its lead of 3.6 ± 5.5 points over TF-IDF is within the spread" in said


def test_the_sentence_for_errors_takes_the_smallest():
    rows = [{"name": "a", "values": [2.0, 2.1, 2.2]}, {"name": "b", "values": [1.0, 1.1, 1.25]}]
    said = verdict(rows, higher_is_better=False, percent=False)
    assert said.startswith("B reaches 1.12 ± 0.13")
    assert "It wins by 0.983 ± 0.029 over a (95 % interval 0.912 to 1.055)" in said


def test_the_sentence_claims_nothing_from_single_runs():
    said = verdict([{"name": "a", "values": [0.9]}, {"name": "b", "values": [0.5]}])
    assert said == (
        "A reaches 90.0 %, the best of 2. It is ahead by 40.0 points over b; with a single run the spread is unknown."
    )
    assert "nothing to compare" in verdict(ROWS[:1])


def test_amounts_have_the_decimals_of_their_spread():
    assert spread_of([0.8203, 0.8205, 0.8201]) == "82.03 ± 0.02 %"
    assert spread_of([0.91]) == "91.0 %"
    assert spread_of([123.4, 125.9], percent=False) == "124.7 ± 1.8"


def test_tables_are_ordered_and_escaped():
    markdown = markdown_table([*ROWS, {"name": "a|b", "values": [0.1, 0.2]}])
    lines = markdown.splitlines()
    assert lines[0] == "|  | accuracy | runs | live parameters | seconds a run |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| linear probe", "| TF-IDF", "| fine-tuning", "| a\\|b"]
    assert "| 73.6 ± 2.2 % | 3 | 22,716,680 | 32.0 |" in markdown
    console = Console(record=True, width=120, file=None, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(comparison_table(ROWS))
    assert capture.get().index("linear probe") < capture.get().index("fine-tuning")


def test_the_page_holds_table_picture_sentence_and_notes(tmp_path):
    folder = tmp_path / "new" / "folder"
    path = write_comparison(folder, title="t <1>", question="which & why?", rows=ROWS, notes=["chosen on validation"])
    page = path.read_text(encoding="utf8")
    assert path == folder / "report.html"
    for part in ("t &lt;1&gt;", "which &amp; why?", verdict(ROWS), "81.9 ± 3.3 %", "chosen on validation", "<svg"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_rows_that_cannot_be_compared_are_all_named():
    with pytest.raises(UserError) as caught:
        ranked([{"values": [1.0]}, {"name": "empty", "values": []}, {"name": "bad", "values": [math.nan]}])
    assert str(caught.value).count("\n  - ") == 3
    with pytest.raises(UserError, match="no rows"):
        verdict([])
