"""One table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(columns: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """The table in Markdown: the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def latex(columns: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """The table as a `tabular` of LaTeX with the rules of the package booktabs."""
    from tabulate import tabulate

    sides = ("left", *["right"] * (len(columns) - 1))
    # What stands for "unknown" and "minus" on a page is no character of LaTeX's in each encoding.
    rows = [[cell.replace("–", "--") for cell in line] for line in body]
    made = tabulate(rows, headers=columns, tablefmt="latex_booktabs", colalign=sides, disable_numparse=True)
    return made.replace("±", "$\\pm$").replace("−", "$-$") + "\n"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers with all their digits, for programs: a line a row, with the names of the first row above."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
