"""Deep models whose equal stages run under one scan, against the same ones stage by stage: to compile, and to train.

    python -m benchmarks.scan [--only "compile, BERT of 24 blocks, all trains"] [--rounds 3] [--any-load]

Narrow models of random weights and real depth, for the program grows with the depth and not with the width: a BERT of
BERT-large's 24 blocks and a LLaMA of 32, both 128 wide; the first is fine-tuned with dropout 0.1, the second has LoRA
of rank 8. A unit of "compile" is what a run waits for before its first step: the step is traced, lowered and compiled,
without any cache. A unit of "train" is a step of 8 × 64 tokens, compiled before. Results go to
benchmarks/results/scan.jsonl.
"""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import benchmark

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


class Workload(NamedTuple):
    """What is measured of a model."""

    kind: str
    model: str
    target: float


WORKLOADS = {
    "compile, BERT of 24 blocks, all trains": Workload("compile", "BERT of 24 blocks", 4.0),
    "compile, LLaMA of 32 blocks, LoRA": Workload("compile", "LLaMA of 32 blocks", 4.0),
    "train, BERT of 24 blocks, all trains": Workload("train", "BERT of 24 blocks", 0.9),
    "train, LLaMA of 32 blocks, LoRA": Workload("train", "LLaMA of 32 blocks", 0.9),
}


def main() -> None:
    def turns(name: str) -> tuple[dict[str, int], tuple[str, ...]]:
        return dict.fromkeys(("ours", "stage by stage"), 1 if WORKLOADS[name].kind == "compile" else 5), (
            "stage by stage",
        )

    benchmark(
        __doc__,
        "benchmarks.scan",
        {name: workload.target for name, workload in WORKLOADS.items()},
        program=lambda program, name: program_of(WORKLOADS[name], scan=program == "ours"),
        turns=turns,
        rounds=3,
        packages=("jax", "flax", "optax", "tljax"),
    )


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
