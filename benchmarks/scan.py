"""Deep models whose equal stages run under one scan, against the same ones stage by stage: to compile, and to train.

    python -m benchmarks.scan [--only "compile, BERT of 24 blocks, all trains"] [--rounds 3]

Narrow models of random weights and real depth, for the program grows with the depth and not with the width: a BERT of
BERT-large's 24 blocks and a LLaMA of 32, both 128 wide; the first is fine-tuned with dropout 0.1, the second has LoRA
of rank 8. A unit of "compile" is what a run waits for before its first step: the step is traced, lowered and compiled,
without any cache. A unit of "train" is a step of 8 × 64 tokens, compiled before. Seconds are those of the processor,
over all threads, which other work on the machine hardly changes. Results go to benchmarks/results/scan.jsonl.
"""

import argparse
import csv
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import Program, record, row, serve, show

BATCH, TOKENS = 8, 64
ALPHABET = "ACDEFGHIKLMNPQRSTVWY"
NARROW = dict(vocab_size=5 + len(ALPHABET), hidden_size=128, max_position_embeddings=TOKENS)
MODELS = {
    "BERT of 24 blocks": (
        {**NARROW, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 512},
        {"fine_tune": {}},
    ),
    "LLaMA of 32 blocks": (
        {**NARROW, "num_hidden_layers": 32, "num_attention_heads": 8, "intermediate_size": 344},
        {"lora": {"rank": 8}},
    ),
}
"""Model → (config, strategy)."""
PEER = "stage by stage"


class Workload(NamedTuple):
    """What is measured of a model."""

    kind: str
    model: str
    target: float


WORKLOADS = {
    "compile, BERT of 24 blocks, all trains": Workload("compile", "BERT of 24 blocks", 1.0),
    "compile, LLaMA of 32 blocks, LoRA": Workload("compile", "LLaMA of 32 blocks", 1.0),
    "train, BERT of 24 blocks, all trains": Workload("train", "BERT of 24 blocks", 0.9),
    "train, LLaMA of 32 blocks, LoRA": Workload("train", "LLaMA of 32 blocks", 0.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("PROGRAM", "WORKLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        who, name = options.serve
        serve(program_of(WORKLOADS[name], scan=who == "ours"))
        return
    rows = []
    for name in options.only or WORKLOADS:
        programs = {who: Program("benchmarks.scan", "--serve", who, name) for who in ("ours", PEER)}
        try:
            turns = in_turns(programs, 1 if WORKLOADS[name].kind == "compile" else 5, options.rounds)
        finally:
            for each in programs.values():
                each.close()
        rows.append(row(name, turns, target=WORKLOADS[name].target, peers=(PEER,), clock="processor"))
    show(rows)
    record("scan", rows, ("jax", "flax", "optax", "tljax"))


def in_turns(programs: Mapping[str, Program], count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Name → {"min", "median": processor seconds a unit of work}, after a turn that does not count."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(1 + rounds):
        for name, program in programs.items():
            before = program.seconds()
            program.run(count)
            if turn:
                found[name].append((program.seconds() - before) / count)
    return {name: {"min": min(each), "median": statistics.median(each)} for name, each in found.items()}


def experiment_of(workload: Workload, folder: Path, *, scan: bool) -> Any:
    """The experiment, on random letters."""
    import numpy as np

    from tljax.assembly.experiment import build

    generator, data = np.random.default_rng(0), folder / "data.csv"
    texts = ["".join(generator.choice(list(ALPHABET), TOKENS - 2)) for _ in range(BATCH)]
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, f"class {i % 2}") for i, text in enumerate(texts))])
    variant, strategy = MODELS[workload.model]
    characters = {"name": "characters", "max_length": TOKENS, "lengths": (TOKENS,)}
    return build(
        {
            "model": {"family": workload.model.split()[0].lower(), "variant": variant, "processor": characters},
            "task": {"name": "classification", "pool": "mean"},
            "strategy": strategy,
            "optim": {"name": "adamw", "learning_rate": 1e-4, "schedule": "constant"},
            "data": {"train": {"source": f"csv:{data}"}},
            "train": {"batch_size": BATCH, "steps": 10_000, "scan": scan},
        }
    )


def program_of(workload: Workload, *, scan: bool) -> Callable[[int], None]:
    """Compilations of the step, or steps."""
    import jax

    from tljax.assembly.training import training, training_batches

    # What was compiled before must not help.
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(workload, Path(folder), scan=scan)
        parts, batches = training(experiment), jax.device_put(next(training_batches(experiment, 0)))
    kept = [parts.state]

    def compiled(count: int) -> None:
        for _ in range(count):
            jax.clear_caches()
            parts.step.lower(parts.state, parts.frozen, batches, parts.key).compile()

    def steps(count: int) -> None:
        for _ in range(count):
            kept[0], metrics = parts.step(kept[0], parts.frozen, batches, parts.key)
        jax.block_until_ready((kept[0], metrics))

    return compiled if workload.kind == "compile" else steps


if __name__ == "__main__":
    main()
