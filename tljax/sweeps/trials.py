"""A trial's run folder, and the process that runs it."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import tljax
from tljax.base.configs import set_value, shared
from tljax.base.files import write_whole

FOLDER, TOGETHER = "trials", "together"
"""Below the study: its trials, and what trains together."""
FILE, LOG, LOCK = "trial.json", "output.log", ".worker"
"""In a trial's folder: what it is, what its process said, and the lock of the worker that has it."""
STATES = ("running", "complete", "pruned", "failed")
SAID = 2000
"""Characters of what a process that failed said last."""


class Plan(NamedTuple):
    """What all trials of a study have in common.

    Attributes:
      study: its folder.
      config: the path of the config file, as given.
      base: the resolved config before a trial's values are set.
      overrides: {dotted key: value} of the command line that made `base` of the file.
      options: other options of every run, such as --data_dir=DATA.
      program: what `train` and its options are given to.
    """

    study: Path
    config: str
    base: Mapping[str, Any]
    overrides: Mapping[str, Any]
    options: Sequence[str]
    program: Sequence[str]


class Found(NamedTuple):
    """What a run's records say so far.

    Attributes:
      values: of the metric at each evaluation on validation, in order.
      end: the record of the end, or None.
    """

    values: list[float]
    end: dict[str, Any] | None


def resolved(plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config of a trial."""
    config = deepcopy(dict(plan.base))
    for key, value in values.items():
        set_value(config, key, deepcopy(value))
    return config


def hash_of(config: Mapping[str, Any]) -> str:
    """The name of a trial: of equal configs it is equal."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(plan: Plan, name: str) -> Path:
    """The run folder of a trial."""
    return plan.study / FOLDER / name


def command_of(plan: Plan, values: Mapping[str, Any], folder: Path) -> list[str]:
    """The command that runs a trial, or continues it."""
    settings = [f"--config.{key}={value!r}" for key, value in {**plan.overrides, **values}.items()]
    return [*plan.program, "train", f"--config={plan.config}", f"--workdir={folder}", *plan.options, *settings]


def command_of_several(plan: Plan, runs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The command that trains probes as one program; `runs` are their configs and folders."""
    path = plan.study / TOGETHER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(list(runs)) + "\n")
    return [*plan.program, "probe", f"--trials={path}", *plan.options]


def group_of(config: Mapping[str, Any]) -> str | None:
    """A name that is equal for probes that can train together; None of what is no linear probe on stored features."""
    method = (config.get("method") or {}).get("name", "supervised")
    stored = (config.get("train") or {}).get("cache", "off") != "off"
    if {*(config.get("strategy") or {})} != {"linear_probe"} or method != "supervised" or not stored:
        return None
    return hash_of(shared(config))


def command_line() -> list[str]:
    """The command line of tljax, as another process can start it."""
    script = Path(tljax.__file__).parents[1] / "launch.py"
    if script.is_file():
        return [sys.executable, str(script)]
    return [sys.executable, "-c", "import sys; from tljax.cli.main import main; sys.exit(main(sys.argv[1:]))"]


def write_trial(folder: Path, **values: Any) -> None:
    """Writes what a trial is and how it stands: `number`, `hash`, `values`, `names`, `state`, `value`, `error`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps(values, indent=1) + "\n")


def read_trial(folder: Path) -> dict[str, Any]:
    """What a trial is; {} where there is none yet."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}


def found_in(folder: Path, metric: str) -> Found:
    """What the records of a run say of a metric. They may be cut back and written again while they are read."""
    values, end = [], None
    for record in _records(folder / "metrics.jsonl"):
        if record.get("kind") == "evaluate" and record.get("split") == "validation":
            value = record["metrics"].get(metric)
            values += [value] if value is not None else []
        elif record.get("kind") == "end":
            end = record
    return Found(values, end)


def _records(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:  # what stands after the last line feed is not whole yet
        try:
            yield json.loads(line)
        except ValueError:
            return


def start(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cores: Iterable[int] = (),
) -> subprocess.Popen:
    """Starts a process that ends with this one; its output is added to a file.

    It gets no Ctrl-C of the terminal, for this process decides what ends it. Where this one is killed, Linux sends it
    SIGTERM, on which a run saves and ends: whoever takes its trial over finds all of it.

    Args:
      command: of the process.
      log: the file.
      environment: variables beside those of this process.
      cores: on which it runs; none names all.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(os.getpid())]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*guard, ",".join(map(str, cores)), *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


def said_last(log: Path) -> str:
    """The end of what a process said."""
    try:
        text = log.read_bytes()[-4 * SAID :].decode("utf8", errors="replace")
    except FileNotFoundError:
        return ""
    return text.strip()[-SAID:]
