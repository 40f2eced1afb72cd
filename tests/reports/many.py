"""Run folders and study folders as a sweep leaves them, with records made up by a rule that tests know."""

import json
from pathlib import Path

import numpy as np

from tljax.metrics import classification

CLASSES = ("cat", "dog", "owl")
EXAMPLES = 240
LABELS = np.arange(EXAMPLES) % 3


def tables(right: np.ndarray) -> dict:
    """What an evaluation of these answers records: the wrong ones are taken for the next class."""
    predicted = np.where(right, LABELS, (LABELS + 1) % 3)
    probabilities = np.full((EXAMPLES, 3), 0.1)
    probabilities[np.arange(EXAMPLES), predicted] = 0.8
    return classification(LABELS, predicted, probabilities, CLASSES)


def write_run(
    folder: Path,
    *,
    seed: int,
    strategy: dict,
    rate: float,
    share: float,
    seconds: float = 10.0,
    validation: float | None = None,
    state: str = "done",
) -> Path:
    """A run whose accuracy on test is `share`, and on validation `validation` (the same by default).

    Which examples are right is drawn by seed and strategy.
    """
    folder.mkdir(parents=True)
    order = np.random.default_rng([seed, *"".join(strategy).encode()]).permutation(EXAMPLES)
    right = np.zeros(EXAMPLES, bool)
    right[order[: round(share * EXAMPLES)]] = True
    found = tables(right)
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    kept = {name: value for name, value in found.items() if name not in numbers}
    reached = numbers["accuracy"] if validation is None else validation
    records = [{"kind": "train", "step": step, "loss": 2.0 / step, "losses": {}, "metrics": {}} for step in (2, 4, 8)]
    for step, lost in ((4, 0.1), (8, 0.0)):
        metrics = {"accuracy": reached - lost, "log_loss": 1.0 - reached + lost}
        records.append({"kind": "evaluate", "step": step, "split": "validation", "metrics": metrics, "tables": {}})
    if state == "done":
        records.append({"kind": "evaluate", "step": 8, "split": "test", "metrics": numbers, "tables": kept})
        best = {"metric": "accuracy", "mode": "max", "value": reached, "split": "validation"}
        records.append({"kind": "end", "step": 8, "best_step": 8, "best": best, "seconds": seconds})
    config = {
        "seed": seed,
        "model": {"source": "models/tiny"},
        "task": {"name": "classification"},
        "strategy": strategy,
        "optim": {"name": "adamw", "learning_rate": rate},
        "data": {name: {"source": "csv:data.csv"} for name in ("train", "validation", "test")},
    }
    live = 100 if "linear_probe" in strategy else 5000
    line = {"state": state, "config": config, "seconds": seconds, "step": 8, "steps": 8, "live_parameters": live}
    line |= {"step_flops": 3e9 if live == 5000 else 1e9, "peak_memory": 2_000_000_000, "metrics": {}, "error": None}
    line |= {"version": "0.1.0", "commit": "abc"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    stages = [
        {"stage": "block0", "parameters": 4900, "live": live - 100, "rate": None}
        | dict.fromkeys(("parameter_bytes", "gradient_bytes", "optimizer_bytes"), 0),
        {"stage": "head", "parameters": 100, "live": 100, "rate": 1.0}
        | dict.fromkeys(("parameter_bytes", "gradient_bytes", "optimizer_bytes"), 0),
    ]
    total = {"parameters": 5000, "live": live, "live_at_end": live}
    total |= dict.fromkeys(("parameter_bytes", "gradient_bytes", "optimizer_bytes"), 0)
    (folder / "inspect.json").write_text(json.dumps({"stages": stages, "total": total}))
    (folder / "records.jsonl").write_text(json.dumps(line) + "\n")
    return folder


STRATEGIES = {"linear_probe": {"linear_probe": {}}, "lora": {"lora": {"rank": 8}}, "fine_tune": {"fine_tune": {}}}
SHARES = {"linear_probe": 0.75, "lora": 0.9, "fine_tune": 0.9125}


def write_study(folder: Path, *, seeds: int = 3) -> Path:
    """Strategies × learning rates × seeds: LoRA and fine-tuning are near each other, the probe is behind, 0.001 is the
    better rate; and one trial that failed, one that was pruned."""
    jitter = np.random.default_rng(7)
    number = 0

    def trial(values: dict, state: str, value: float | None, error: str | None = None, run: dict | None = None) -> None:
        nonlocal number
        place = folder / "trials" / f"{number:04x}"
        if run:
            write_run(place, **run)
        place.mkdir(parents=True, exist_ok=True)
        made = {"number": number, "hash": place.name, "values": values, "state": state, "value": value, "error": error}
        (place / "trial.json").write_text(json.dumps(made))
        number += 1

    for name, strategy in STRATEGIES.items():
        for rate in (1e-4, 1e-3):
            for seed in range(seeds):
                share = SHARES[name] - (0.05 if rate < 1e-3 else 0.0) + 0.004 * jitter.standard_normal()
                values = {"strategy": strategy, "optim.learning_rate": rate, "seed": seed}
                shape = {"strategy": strategy, "rate": rate, "seed": seed, "share": share}
                trial(values, "complete", share, run={**shape, "seconds": 5.0 if name == "linear_probe" else 20.0})
    values = {"strategy": STRATEGIES["lora"], "optim.learning_rate": 1.0, "seed": 0}
    trial(values, "failed", None, "RunError: the loss is <nan>")
    shape = {"strategy": STRATEGIES["lora"], "rate": 1e-5, "seed": 0, "share": 0.4, "state": "stopped"}
    trial({**values, "optim.learning_rate": 1e-5}, "pruned", 0.3, run=shape)
    base = {"model": {"source": "models/tiny"}, "task": {"name": "classification"}, "optim": {"name": "adamw"}}
    base["data"] = {name: {"source": "csv:data.csv"} for name in ("train", "validation", "test")}
    study = {"name": "tiny sweep", "base": base, "config": "configs/tiny.py", "axes": {}, "sampler": "grid"}
    (folder / "study.json").write_text(json.dumps({**study, "pruner": None, "metric": "accuracy", "mode": "max"}))
    return folder
