"""Stands in for `launch.py train` where a test is about studies and not about training: the same options, records, lock
and exit codes, in a tenth of a second and without jax.

Its metric at evaluation n is `optim.learning_rate` · n / evaluations. Its records say what it has done; it goes on from
there. `train.fail` makes it fail; `train.seconds` is the time of an evaluation.
"""

import ast
import json
import signal
import sys
import time
from pathlib import Path

from tljax.base.lock import held

EVALUATIONS = 3


def main(arguments: list[str]) -> int:
    given = dict(word.removeprefix("--").partition("=")[::2] for word in arguments if word.startswith("--"))
    config = {key: ast.literal_eval(value) for key, value in given.items() if key.startswith("config.")}
    folder = Path(given["workdir"])
    if given.get("process", "0") != "0":
        return take_part(folder, given["process"])
    if "processes" in given:  # as jax: none begins before all are there
        wait_for([folder / "joined"])
    with held(folder):
        with (folder / "starts").open("a") as file:
            file.write("start\n")
        if config.get("config.train.fail"):
            print("tljax: the run stopped. It was told to.", file=sys.stderr)
            return 3
        return train(folder, config.get("config.optim.learning_rate", 0.5), config.get("config.train.seconds", 0.0))


def wait_for(paths: list[Path]) -> None:
    end = time.monotonic() + 20
    while not any(path.exists() for path in paths) and time.monotonic() < end:
        time.sleep(0.05)


def take_part(folder: Path, process: str) -> int:
    """What a process of a run does that is not its first: it joins, and ends when that one does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "joined").touch()
    wait_for([folder / "finishes", folder / "stopped"])
    with (folder / f"process-{process}").open("a") as file:
        file.write("part\n")
    return 0


def train(folder: Path, rate: float, seconds: float) -> int:
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    path = folder / "metrics.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as file:
        for number in range(done + 1, EVALUATIONS + 1):
            time.sleep(seconds)
            metrics = {"accuracy": rate * number / EVALUATIONS}
            record = {"kind": "evaluate", "step": 10 * number, "split": "validation", "metrics": metrics}
            file.write(json.dumps(record) + "\n")
            file.flush()
            if stopped:
                (folder / "stopped").touch()
                return 143
        best = {"metric": "accuracy", "mode": "max", "value": rate, "split": "validation"}
        file.write(json.dumps({"kind": "end", "step": 10 * EVALUATIONS, "best": best}) + "\n")
    with (folder / "finishes").open("a") as file:
        file.write("finish\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
