"""What `select --budget` does: short runs of checkpoints and strategies, chosen between by successive halving."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tljax.base.errors import RunError
from tljax.cli.main import Arguments

PROBE = "linear_probe"


class Stopped(Exception):
    """A run was stopped by a signal; `code` is the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Run(NamedTuple):
    """A candidate: its resolved config, and its strategy."""

    config: dict[str, Any]
    strategy: str


def verify(
    arguments: Arguments,
    found: Mapping[str, Any],
    budget: float,
    before: Mapping[str, Any] | None,
    *,
    say: Callable[[str], None],
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Compares the strategies of the first checkpoints on `validation`, in runs as long as the config's at most.

    A linear probe is fitted to its end at once, so its steps do not count.

    Args:
      arguments: of the command line.
      found: see `tljax.assembly.selecting.select`.
      budget: seconds.
      before: what an earlier call returned or kept; it goes on from there.
      say: prints one line.
      keep: is given what has run, after each run.

    Returns:
      `candidates`, `rungs` (`steps`, and `tried`: candidate, value, seconds), why it `ended` early, and the `winner`.
    """
    from tljax.assembly.halving import Rung, Tried, halve
    from tljax.assembly.selecting import settings_of
    from tljax.base.tables import call
    from tljax.train.settings import Settings

    settings = settings_of(arguments.config)
    train = call(Settings, (), arguments.config.get("train"), where="config.train").check()
    runs, metric = runs_of(arguments, found, settings.finalists), train.metric or "accuracy"

    def run(name: str, rung: int, steps: int) -> float | None:
        say(f"rung {rung + 1}, {steps} steps: {name}")
        try:
            return _measured(arguments, name, runs[name], rung, steps, metric)
        except RunError as error:
            say(f"{name} failed: {error}")
            return None

    rungs = [Rung(each["steps"], tuple(Tried(**x) for x in each["tried"])) for each in (before or {}).get("rungs", ())]
    rungs, ended = halve(
        list(runs),
        run,
        steps=train.total_steps(found["examples"]["train"]),
        eta=settings.eta,
        budget=budget,
        known=rungs,
        keep=lambda rungs: keep(_plain(list(runs), rungs, "it was stopped")),
    )
    keep(plain := _plain(list(runs), rungs, ended))
    return plain


def runs_of(arguments: Arguments, found: Mapping[str, Any], finalists: int) -> dict[str, Run]:
    """Name → run, of the strategies of the first `finalists` checkpoints; of each the advised one first."""
    from tljax.assembly.selecting import laid_over

    runs = {}
    for each in found["checkpoints"][:finalists]:
        for strategy in sorted(each["ways"], key=lambda way, each=each: way != each["advice"]["strategy"]):
            config = laid_over(arguments.config, each["ways"][strategy])
            runs[f"{each['name']}: {strategy}"] = Run(config, strategy)
    return runs


def _plain(names: list[str], rungs: list[Any], ended: str | None) -> dict[str, Any]:
    from tljax.assembly.halving import winner

    best = winner(rungs)
    shown = [{"steps": rung.steps, "tried": [tried._asdict() for tried in rung.tried]} for rung in rungs]
    return {"candidates": names, "rungs": shown, "ended": ended, "winner": best._asdict() if best else None}


def _measured(arguments: Arguments, name: str, run: Run, rung: int, steps: int, metric: str) -> float:
    """The metric on `validation` of a run of so many steps, in a folder of its own."""
    from tljax.cli import probe, train
    from tljax.reports.records import read_run

    timing = ("epochs", "steps", "eval_every")
    kept = {key: value for key, value in (run.config.get("train") or {}).items() if key not in timing}
    config = {key: value for key, value in run.config.items() if key != "select"}
    # What is tested on is not read: it chooses nothing.
    config["data"] = {key: entry for key, entry in config["data"].items() if not key.startswith("test")}
    config["train"] = {**kept, "steps": steps, "eval_every": steps}
    place = "probe" if run.strategy == PROBE else f"rung{rung + 1}"
    folder = arguments.workdir / "runs" / re.sub(r"[^\w.-]+", "_", name) / place
    arguments.options.split = "validation"
    if run.strategy != PROBE or not (folder / "metrics.jsonl").exists():
        verb = probe if run.strategy == PROBE else train
        if code := verb.run(Arguments(config, folder, arguments.data_dir, arguments.options)):
            raise Stopped(code)
    return float(read_run(folder).last_evaluations()["validation"]["metrics"][metric])


def said(verified: Mapping[str, Any], advised: Mapping[str, Any]) -> list[str]:
    """Lines: what the runs came to, and whether they agree with the advice."""
    lines = []
    for rung in verified["rungs"]:
        for each in sorted(rung["tried"], key=lambda tried: -(tried["value"] or 0)):
            value = "failed" if each["value"] is None else f"{each['value']:.4f}"
            lines.append(f"{rung['steps']} steps: {value}  {each['candidate']} ({each['seconds']:.0f} s)")
    if verified["ended"]:
        lines.append(f"ended early: {verified['ended']}.")
    best = verified["winner"]
    if best is None:
        return [*lines, "no run was measured, so the advice is not verified."]
    mine = f"{advised['checkpoint']}: {advised['strategy']}"
    agrees = "as advised" if best["candidate"] == mine else f"and not {mine}, which was advised"
    return [*lines, f"the runs find {best['candidate']} best on validation ({best['value']:.4f}), {agrees}."]
