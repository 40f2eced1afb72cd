"""`select`: which checkpoint, which depth and which strategy, from scores; with `--budget`, verified by short runs."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from tljax.base.errors import RunError, UserError
from tljax.base.files import write_whole
from tljax.cli.common import need_config, need_workdir
from tljax.cli.main import Arguments

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
FILE = "select.json"
WIDTH = 140


def run(arguments: Arguments) -> int:
    """Scores the checkpoints, says what it advises and why; with --workdir, keeps that as a file and a page.

    With `--budget` short runs compare the strategies of the first checkpoints on `validation`, by successive halving;
    the same command goes on with what has run.
    """
    config, budget = need_config(arguments), seconds_of(arguments.options.budget)
    before = _before(arguments, config)
    if budget is not None:
        need_workdir(arguments)
        if not (config.get("data") or {}).get("validation"):
            raise UserError(
                "--budget chooses between runs by config.data.validation, which is not there. Hold some of `train` out "
                "(docs/configs.md)."
            )
    from tljax.assembly.selecting import select
    from tljax.train.display import Display

    display = Display()
    found = select(config, arguments.options.checkpoints, data_dir=arguments.data_dir, say=display.say)
    if not display.console.is_terminal:  # a log has no width to keep to
        display.console.width = WIDTH
    display.console.print(score_table(found))
    _say_advice(display.say, found)
    found = {"config": _plain(config), "checkpoints_given": arguments.options.checkpoints, **found}
    if arguments.workdir is None:
        return 0
    keep = partial(_keep, arguments.workdir, found)
    if budget is None:
        keep(before)
    else:
        from tljax.cli.verifying import Stopped, said, verify

        try:
            verified = verify(arguments, found, budget, before, say=display.say, keep=keep)
        except Stopped as stop:
            display.say("stopped; the same command goes on with what has run.")
            return stop.code
        for line in said(verified, found["recommendation"]):
            display.say(line)
    from tljax.reports.selection import write_selection_report

    display.say(f"report: {write_selection_report(arguments.workdir)}")
    return 0


def seconds_of(text: str | None) -> float | None:
    """The seconds of "90s", "10m", "1.5h" or a number; None for None."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not matched or float(matched[1]) == 0:
        raise UserError(f"--budget={text} is no time. Give seconds, minutes or hours: 90s, 10m, 2h.")
    return float(matched[1]) * UNITS[matched[2]]


def score_table(found: Mapping[str, Any]) -> Table:
    """A row a depth of each checkpoint, and one of the raw inputs; accuracies are those of `tljax.train.held_out`."""
    scores = list(found["checkpoints"][0]["depths"][0]["scores"])
    distances = any(row.get("distance") is not None for each in found["checkpoints"] for row in each["depths"])
    title = f"{found['scored']['train']} examples of {found['classes']} classes; accuracy by {found['held_out']}"
    table = Table(title=title, title_justify="left")
    for name in ("checkpoint", "depth"):
        table.add_column(name, no_wrap=True)
    for name in (
        "width",
        "accuracy, %",
        "neighbour, %",
        *scores,
        "CKA with classes",
        *(["A-distance"] if distances else []),
    ):
        table.add_column(name, justify="right")
    rows = [(each["name"], row) for each in found["checkpoints"] for row in each["depths"]]
    rows += [("raw inputs", {"depth": "", **found["raw"]})] if found["raw"] else []
    last = None
    for name, row in rows:
        cells = [str(row["width"]), f"{100 * row['accuracy']:.1f} ± {100 * row['error']:.1f}"]
        cells.append(f"{100 * row['neighbour']:.1f}")
        cells += [_short(row["scores"][score]) for score in scores]
        cells += [_short(row["alignment"]), *([_short(row.get("distance"))] if distances else [])]
        table.add_row(name if name != last else "", row["depth"], *cells)
        last = name
    return table


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _say_advice(say: Callable[[str], None], found: Mapping[str, Any]) -> None:
    for each in found["checkpoints"]:
        if each["own"]:
            say(f"{each['name']}, its own classifier: " + ", ".join(f"{k} {v:.3f}" for k, v in each["own"].items()))
    advised = found["recommendation"]
    say(f"advised: {advised['checkpoint']}, {advised['strategy']}, features best after {advised['depth']}")
    for reason in advised["reasons"]:
        say(f"  {reason}")
    section = " ".join(f'--config.{key}="{value}"' for key, value in _flat(advised["sections"]))
    say(f"  {'probe' if advised['strategy'] == 'linear_probe' else 'train'} {section}")


def _flat(sections: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys and values, as the command line takes them; a model and a strategy stay whole."""
    found = []
    for key, value in sections.items():
        if key in ("model", "strategy") or not isinstance(value, Mapping):
            found.append((key, value))
        else:
            found += [(f"{key}.{name}", each) for name, each in value.items()]
    return found


def _plain(config: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(config))


def _before(arguments: Arguments, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier call has verified in the same workdir.

    Raises:
      UserError: the workdir is a run's, or that of another selection.
    """
    workdir = arguments.workdir
    if workdir is None or not workdir.exists():
        return None
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} is the folder of a run. Give another --workdir.")
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf8"))
        same = there["config"] == _plain(config) and there["checkpoints_given"] == arguments.options.checkpoints
        verification = there.get("verification")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it, or give another --workdir.") from error
    if not same:
        raise UserError(
            f"{workdir} holds another selection: the config or --checkpoints differ. Give another --workdir."
        )
    return verification


def _keep(workdir: Path, found: Mapping[str, Any], verification: Mapping[str, Any] | None) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / FILE, json.dumps({**found, "verification": verification}, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{workdir / FILE} cannot be written: {error}.") from error
