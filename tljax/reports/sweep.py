"""What a sweep says of its settings: the value of each trial against each of them, and which of them matter."""

from statistics import fmean
from typing import Any

from tljax.base.configs import flat_config
from tljax.reports import plots
from tljax.reports.answer import Answer, evaluation
from tljax.reports.gather import Entry, Gathered
from tljax.reports.groups import shortened
from tljax.reports.html import Html, element, section
from tljax.reports.importance import importances
from tljax.reports.words import said, scale_of, setting

SLICES = 8
"""Settings that are drawn, the most important ones."""


def sweep_sections(answer: Answer, gathered: Gathered) -> list[Html]:
    """Slices through the trials and the importance of their settings, by validation; nothing where none varies.

    Settings are what the studies set, or where there is no study those in which the runs differ.
    """
    question = answer.question
    factor, unit, _ = scale_of(question.metric)
    trials = []
    for group in answer.groups:
        for entry in group.entries:
            value = _objective(entry, answer)
            if value is not None:
                trials.append((_settings(entry, group.settings), factor * value, entry))
    keys = list(dict.fromkeys(key for settings, _, _ in trials for key in settings))
    keys = [key for key in keys if len({repr(settings[key]) for settings, _, _ in trials if key in settings}) > 1]
    if not keys:
        return []
    weights = importances([(settings, value) for settings, value, _ in trials])
    keys.sort(key=lambda key: -weights.get(key, 0.0))
    short = shortened(keys)
    label = f"validation {said(question.metric)}{unit}"
    structural = keys[0] if not isinstance(trials[0][0].get(keys[0]), (int, float)) else None
    pictures = []
    for key in keys[:SLICES]:
        points: dict[str, list[tuple[Any, float]]] = {}
        for settings, value, _ in trials:
            if key in settings:
                name = settings.get(structural, "") if structural and structural != key else ""
                points.setdefault(str(name), []).append((settings[key], value))
        # The best on top of the legend, as everywhere on the page.
        points = dict(sorted(points.items(), key=lambda item: -question.sign * fmean(value for _, value in item[1])))
        pictures.append(plots.sliced(points, key=short[key], label=label))
    note = "Each dot is a trial, lines are means."
    parts = [section("Settings", element("div", *pictures, class_="plots"), note=note)]
    if weights:
        note = "The share of the variance of the trials' values that a setting explains, alone or with others (fANOVA)."
        picture = plots.shares({short[key]: weight for key, weight in weights.items()}, title="Importance")
        parts.append(section("Which settings matter", element("div", picture, style="max-width:520px"), note=note))
    return parts


def _objective(entry: Entry, answer: Answer) -> float | None:
    """The value on validation: of the checkpoint that the question is about."""
    if entry.state != "done":
        return None
    return evaluation(entry, "validation", answer.question).get("metrics", {}).get(answer.question.metric)


def _settings(entry: Entry, differing: dict[str, Any]) -> dict[str, Any]:
    """Setting → value, a number or a text; a value that is a section is called by its names and what it sets."""
    if not entry.values:
        found: dict[str, Any] = {}
        for key, value in differing.items():
            named = key.startswith("strategy.")
            found |= {"strategy": _called(entry.run.config["strategy"])} if named else {key: value}
        return found if entry.seed is None else {**found, "seed": entry.seed}
    return {key: _called(value) if isinstance(value, dict) else value for key, value in entry.values.items()}


def _called(value: dict[str, Any]) -> str:
    """{"lora": {"rank": 8}} as "lora (rank=8)"."""
    parts = []
    for name, options in value.items():
        inside = flat_config(options) if isinstance(options, dict) else {}
        text = ", ".join(f"{key}={setting(each)}" for key, each in inside.items())
        if isinstance(options, dict):
            parts.append(f"{name} ({text})" if text else name)
        else:
            parts.append(f"{name}={setting(options)}")
    return " + ".join(parts)
