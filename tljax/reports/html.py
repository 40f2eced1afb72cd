"""Self-contained HTML: elements that escape their text, tables, and one style sheet for light and dark."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Html(NamedTuple):
    """Markup that is already safe. Everything else is text, and is escaped where it enters a page."""

    markup: str


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """`<tag attributes>children</tag>`; children are `Html` or text, `class_` stands for `class`."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>{join(children).markup}</{tag}>")


def join(parts: Iterable[Any]) -> Html:
    """The parts one after another."""
    return Html("".join(part.markup if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def section(title: str, *children: Any, note: str | None = None) -> Html:
    """A titled part of a page, with an optional line of explanation."""
    notes = [element("p", note, class_="note")] if note else []
    return element("section", element("h2", title), *notes, *children)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, marked: Sequence[int] = ()) -> Html:
    """A table: the first column is left-aligned, the others to the right; rows listed in `marked` stand out."""
    head = element("tr", *(element("th", name) for name in columns))
    body = [
        element("tr", *(element("td", cell) for cell in row), class_="marked" if i in marked else None)
        for i, row in enumerate(rows)
    ]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """A table of two columns: names and values."""
    rows = [element("tr", element("th", name), element("td", value)) for name, value in pairs]
    return element("div", element("table", element("tbody", *rows), class_="facts"), class_="scroll")


def cards(entries: Iterable[tuple[str, str, str]]) -> Html:
    """A row of large numbers: (value, what it is, small print)."""
    made = [
        element(
            "div",
            element("div", value, class_="value"),
            element("div", name, class_="name"),
            element("div", small, class_="small"),
            class_="card",
        )
        for value, name, small in entries
    ]
    return element("div", *made, class_="cards")


def bar(share: float, label: str) -> Html:
    """A number in a table cell with a bar behind it; `share` of the cell's width, 0 to 1."""
    width = f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"
    return element("div", element("i", style=width), element("span", label), class_="bar")


def picture(file: Path, title: str) -> Html:
    """An image file inside the page, with its title."""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    source = f"data:image/{file.suffix.lstrip('.')};base64,{data}"
    image = Html(f'<img src="{source}" alt="{html.escape(title, quote=True)}">')
    return element("figure", image, element("figcaption", title))


def page(title: str, subtitle: str, *children: Any) -> str:
    """A whole page, as text. It reads nothing from a network."""
    head = join(
        [
            Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
    )
    header = element("header", element("h1", title), element("p", subtitle, class_="subtitle"))
    footer = element("footer", "Made by tljax from the records of the run. This page is one file.")
    body = element("body", element("main", header, *children, footer))
    return f'<!doctype html>\n<html lang="en"><head>{head.markup}</head>{body.markup}</html>\n'


STYLE = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --panel: #ffffff; --ink: #1c2330; --soft: #5d6778; --line: #dfe3ea; --mark: #eef4ff;
  --c0: #2a6bd8; --c1: #d9730d; --c2: #0c8f6b; --c3: #8a54cf; --c4: #c9365a; --c5: #55708f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #12151b; --panel: #1a1f28; --ink: #e6e9ef; --soft: #9aa5b6; --line: #2f3744; --mark: #1f2c44;
    --c0: #6ea3ff; --c1: #ffab5e; --c2: #4fd0a8; --c3: #bd93f9; --c4: #ff7d9c; --c5: #9db4cf;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.02em; }
h2 { font-size: 18px; margin: 0 0 10px; letter-spacing: -0.01em; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 10px; }
.subtitle { color: var(--soft); margin: 6px 0 0; }
header { margin-bottom: 24px; }
.headline { font-size: 19px; line-height: 1.45; margin: 0 0 18px; padding: 14px 18px; background: var(--panel);
  border-left: 4px solid var(--c0); border-radius: 0 10px 10px 0; }
.note, .small { color: var(--soft); font-size: 13.5px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px;
  margin: 0 0 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 18px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.value { font-size: 25px; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.name { font-weight: 550; }
.small { font-size: 12.5px; line-height: 1.4; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 14px 22px; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { color: var(--soft); font-size: 12.5px; padding: 4px 2px 0; }
.sample { display: inline-block; max-width: 420px; white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; }
figure text { font-family: inherit !important; }
.below { max-width: 820px; margin-top: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); font-size: 13px; padding: 6px 10px; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); }
td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
tr.marked td { background: var(--mark); font-weight: 600; }
.facts th { text-align: left; width: 1%; font-weight: 500; border-bottom: 1px solid var(--line); vertical-align: top; }
.facts td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; }
.bar { position: relative; min-width: 96px; padding: 0 6px; }
.bar i { position: absolute; inset: 1px auto 1px 0; background: var(--c0); opacity: 0.2; border-radius: 3px; }
.bar span { position: relative; }
.live { color: var(--c2); font-weight: 600; }
.frozen { color: var(--soft); }
details summary { cursor: pointer; color: var(--soft); font-weight: 600; font-size: 14px; padding: 2px 0 8px; }
footer { color: var(--soft); font-size: 12.5px; margin-top: 26px; }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""
