"""Stands in for `launch.py train` where a test is about studies and not about training: the same options, records, lock
and exit codes, in a tenth of a second and without jax.

Its metric at evaluation n is `optim.learning_rate` · n / evaluations. Its records say what it has done; it goes on from
there. `train.fail` makes it fail; `train.seconds` is the time of an evaluation. `probe --trials=FILE` is several.
"""

import ast
import json
import signal
import sys
import time
from pathlib import Path

from tljax.base.lock import held

EVALUATIONS = 3
STOPPED: list[int] = []


def main(arguments: list[str]) -> int:
    given = dict(word.removeprefix("--").partition("=")[::2] for word in arguments if word.startswith("--"))
    signal.signal(signal.SIGTERM, lambda number, frame: STOPPED.append(number))
    if arguments[0] == "probe":
        runs = json.loads(Path(given["trials"]).read_text())
        return max(train(Path(run["workdir"]), run["config"]["optim"], run["config"]["train"]) for run in runs)
    folder = Path(given["workdir"])
    if given.get("process", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return take_part(folder, given["process"])
    if "processes" in given:  # as jax: none begins before all are there
        wait_for([folder / "joined"])
    config = {key: ast.literal_eval(value) for key, value in given.items() if key.startswith("config.")}
    sections: dict[str, dict] = {"optim": {}, "train": {}}
    for key, value in config.items():
        _, section, *rest = key.split(".")
        sections.setdefault(section, {})[".".join(rest)] = value
    return train(folder, sections["optim"], sections["train"])


def wait_for(paths: list[Path]) -> None:
    end = time.monotonic() + 20
    while not any(path.exists() for path in paths) and time.monotonic() < end:
        time.sleep(0.05)


def take_part(folder: Path, process: str) -> int:
    """What a process of a run does that is not its first: it joins, and ends when that one does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "joined").touch()
    wait_for([folder / "finishes", folder / "stopped"])
    note(folder / f"process-{process}")
    return 0


def note(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{path.name}\n")


def train(folder: Path, optim: dict, settings: dict) -> int:
    rate = optim.get("learning_rate", 0.5)
    with held(folder):
        note(folder / "starts")
        if settings.get("fail"):
            print("tljax: the run stopped. It was told to.", file=sys.stderr)
            return 3
        path = folder / "metrics.jsonl"
        done = len(path.read_text().splitlines()) if path.exists() else 0
        with path.open("a") as file:
            for number in range(done + 1, EVALUATIONS + 1):
                if STOPPED:
                    note(folder / "stopped")
                    return 143
                time.sleep(settings.get("seconds", 0.0))
                metrics = {"accuracy": rate * number / EVALUATIONS}
                record = {"kind": "evaluate", "step": 10 * number, "split": "validation", "metrics": metrics}
                file.write(json.dumps(record) + "\n")
                file.flush()
            best = {"metric": "accuracy", "mode": "max", "value": rate, "split": "validation"}
            file.write(json.dumps({"kind": "end", "step": 10 * EVALUATIONS, "best": best}) + "\n")
        note(folder / "finishes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
