"""The page of a selection: what is advised and why, the scores of all depths, what short runs said of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.base.files import write_whole
from tljax.reports import plots
from tljax.reports.html import Html, cards, element, page, section, table

NAMES = {
    "linear_probe": "a linear probe",
    "last_stages": "the last stages",
    "adapters": "adapters",
    "fine_tune": "fine-tuning",
}
NOTE = (
    "Accuracy is that of a linear classifier on frozen features, of examples that it was not fitted to, with its "
    "standard error; neighbour is that of the nearest one. Lower depths are means over tokens or pixels, the top one "
    "is what the head reads. CKA: how much of the features' similarities is that of the classes, from 0 to 1. "
    "Compare scores within a column only."
)


def write_selection_report(folder: Path) -> Path:
    """Writes `select.html` from `select.json` alone; returns its path.

    Raises:
      UserError: there is no such record, or it is no JSON.
    """
    path = Path(folder) / "select.json"
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no selection: it has no select.json.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    advised = found["recommendation"]
    parts = [
        element("p", headline(found), class_="headline"),
        cards(_key_numbers(found)),
        section("Why", *(element("p", reason) for reason in advised["reasons"])),
        section("Depths", _table(found), element("div", _picture(found), class_="below"), note=NOTE),
        *_verified(found),
    ]
    subtitle = f"{len(found['checkpoints'])} checkpoints, before any training"
    return write_whole(Path(folder) / "select.html", page("Which checkpoint, and what of it", subtitle, *parts))


def headline(found: Mapping[str, Any]) -> str:
    """What is advised, in a sentence."""
    advised = found["recommendation"]
    return f"Advised: {NAMES[advised['strategy']]} of {advised['checkpoint']} (rule: {advised['rule']})."


def _key_numbers(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    first = found["checkpoints"][0]
    best = max(row["accuracy"] for row in first["depths"])
    shown = [
        (f"{found['per_class']:,}", "examples of the smallest class", f"{found['examples']['train']:,} in all"),
        (str(found["classes"]), "classes", found["held_out"]),
        (f"{100 * best:.1f} %", "frozen features at best", first["name"]),
    ]
    if found["raw"]:
        shown.append((f"{100 * found['raw']['accuracy']:.1f} %", "raw inputs", f"{found['raw']['width']} numbers"))
    return shown


def _table(found: Mapping[str, Any]) -> Html:
    scores = list(found["checkpoints"][0]["depths"][0]["scores"])
    advised, rows, marked = found["recommendation"], [], []
    for each in found["checkpoints"]:
        for row in each["depths"]:
            if (each["name"], row["depth"]) == (advised["checkpoint"], advised["depth"]):
                marked.append(len(rows))
            rows.append([each["name"], row["depth"], *_cells(row, scores)])
    if found["raw"]:
        rows.append(["raw inputs", "", *_cells(found["raw"], scores)])
    titles = [
        "checkpoint",
        "depth",
        "width",
        "accuracy, %",
        "neighbour, %",
        *scores,
        "CKA with classes",
        "A-distance to the source",
    ]
    return table(titles, rows, marked=marked)


def _cells(row: Mapping[str, Any], scores: list[str]) -> list[str]:
    accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['error']:.1f}"
    numbers = [*(row["scores"][name] for name in scores), row["alignment"], row.get("distance")]
    return [
        str(row["width"]),
        accuracy,
        f"{100 * row['neighbour']:.1f}",
        *("–" if x is None else f"{x:.4g}" for x in numbers),
    ]


def _picture(found: Mapping[str, Any]) -> Html:
    series = {
        each["name"]: (
            [row["depth"] for row in each["depths"]],
            [100 * row["accuracy"] for row in each["depths"]],
            [100 * row["error"] for row in each["depths"]],
        )
        for each in found["checkpoints"]
    }
    raw = 100 * found["raw"]["accuracy"] if found["raw"] else None
    return plots.by_depth(series, raw, title="linear classifiers on frozen features, by depth")


def _verified(found: Mapping[str, Any]) -> list[Html]:
    verified = found.get("verification")
    if not verified:
        return []
    rows = [
        [each["candidate"], f"{rung['steps']:,}", _value(each["value"]), f"{each['seconds']:.0f}"]
        for rung in reversed(verified["rungs"])
        for each in sorted(rung["tried"], key=lambda tried: -(tried["value"] or 0))
    ]
    said = [element("p", f"Ended early: {verified['ended']}.")] if verified["ended"] else []
    if verified["winner"]:
        mine = f"{found['recommendation']['checkpoint']}: {found['recommendation']['strategy']}"
        agrees = "as advised" if verified["winner"]["candidate"] == mine else f"which is not what was advised ({mine})"
        said.insert(0, element("p", f"Best on validation: {verified['winner']['candidate']}, {agrees}."))
    note = "Successive halving: of each rung the best go on, from the start, with more steps. Values are of validation."
    return [section("Short runs", *said, table(["run", "steps", "value", "seconds"], rows), note=note)]


def _value(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"
