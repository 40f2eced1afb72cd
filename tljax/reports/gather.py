"""Many runs from many folders: runs by themselves, and the trials of studies."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.configs import set_value
from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.reports.records import Run, read_json, read_run

TRIAL_STATES = {"complete": "done", "pruned": "pruned", "failed": "failed", "running": "unfinished"}
"""State of a trial → state of its run here."""


class Entry(NamedTuple):
    """One run among others.

    Attributes:
      run: what it left behind.
      state: "done", "stopped", "failed", "pruned" (by a study), or "unfinished" (at work, or killed).
      error: why it failed, or None.
      values: dotted config key → value, of what its study set; {} for a run by itself.
      objective: by which its study judges it, or None.
      study: the folder of its study, or None.
    """

    run: Run
    state: str
    error: str | None = None
    values: Mapping[str, Any] = {}
    objective: float | None = None
    study: Path | None = None

    @property
    def seed(self) -> Any:
        """Of its config; None where it names none."""
        return self.run.config.get("seed")


class Gathered(NamedTuple):
    """`entries` of all folders, each run once, and `studies`: study folder → its study.json."""

    entries: list[Entry]
    studies: dict[Path, dict[str, Any]]


def gather(folders: Sequence[Path]) -> Gathered:
    """The runs of run folders, of study folders (they have a study.json), and of folders that hold such.

    Raises:
      UserError: a folder is not there, or holds neither; a file is malformed.
    """
    if not folders:
        raise UserError("No folder is named: report FOLDER… of runs and studies, or --workdir=FOLDER of one run.")
    entries: dict[Path, Entry] = {}
    studies: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            there = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
            raise UserError(f"There is no folder {folder}. {suggest(str(folder), there)}")
        if not (places := list(_places(folder))):
            raise UserError(
                f"{folder} holds no run and no study: no metrics.jsonl, no study.json, and neither in a folder in it."
            )
        for place in places:
            if (place / "study.json").is_file():
                studies[place] = read_json(place / "study.json")
                found = _trials(place, studies[place].get("base") or {})
            else:
                found = [_entry(read_run(place))]
            for entry in found:
                entries.setdefault(entry.run.folder.resolve(), entry)
    return Gathered(list(entries.values()), studies)


def _places(folder: Path) -> Iterable[Path]:
    for place in (folder, *sorted(folder.iterdir())):
        if any((place / name).is_file() for name in ("study.json", "metrics.jsonl")):
            yield place
            if place == folder:
                return


def _trials(study: Path, base: Mapping[str, Any]) -> list[Entry]:
    found = []
    for path in sorted(study.glob("trials/*/trial.json")):
        trial = read_json(path)
        state = TRIAL_STATES.get(trial.get("state", ""))
        if state is None:
            raise UserError(f"{path}: its state is {trial.get('state')!r}. {suggest('', TRIAL_STATES)}")
        entry = _entry(_read_trial(path.parent, base, trial.get("values") or {}))
        # What a study knows of a trial counts: to a run that was pruned it was stopped by a signal.
        found.append(
            entry._replace(
                state=state,
                error=trial.get("error") or entry.error,
                values=trial.get("values") or {},
                objective=trial.get("value"),
                study=study,
            )
        )
    return found


def _read_trial(folder: Path, base: Mapping[str, Any], values: Mapping[str, Any]) -> Run:
    """The run of a trial; of one that failed before its first record what the study knows of it."""
    run = read_run(folder) if (folder / "metrics.jsonl").is_file() else Run(folder, {}, {}, {}, [])
    if run.config:
        return run
    config = deepcopy(dict(base))
    for key, value in values.items():
        set_value(config, key, value)
    return run._replace(config=config)


def _entry(run: Run) -> Entry:
    outcome = run.outcome
    state = outcome.get("state") or ("done" if run.of("end") else "unfinished")
    return Entry(run, state, outcome.get("error"))
