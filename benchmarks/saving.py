"""What saving costs: steps with a checkpoint every 50 of them against the same without, and digests against saves.

    python -m benchmarks.saving [--only "a checkpoint every 50 steps"] [--rounds 5] [--any-load]

Full fine-tuning of all-MiniLM-L6-v2, batches of 32 × 64 tokens, float32: a checkpoint holds 22.7 million weights and
Adam's two moments. A turn is 50 steps, before which `ours` hands a checkpoint to the thread that writes it; it is
written while the steps run. The ratio is the time without checkpoints by that with them. In the second workload a unit
is a whole checkpoint, on disk, and `without digests` leaves them out.
Results go to benchmarks/results/saving.jsonl.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import benchmark
from benchmarks.training import WORKLOADS, experiment_of, our_batch
from tljax.base.memory import keep_freed_memory

STEPS = 50
EVERY, DIGESTS = "a checkpoint every 50 steps", "a checkpoint with digests"
TARGETS = {EVERY: 0.98, DIGESTS: 0.95}
"""Under 2 % of the steps' time, and under 5 % of the save's."""


def main() -> None:
    def turns(name: str) -> tuple[dict[str, int], tuple[str, ...]]:
        other, count = ("without checkpoints", STEPS) if name == EVERY else ("without digests", 8)
        return {"ours": count, other: count}, (other,)

    benchmark(
        __doc__,
        "benchmarks.saving",
        TARGETS,
        program=program,
        turns=turns,
        rounds=5,
        packages=("jax", "tljax", "orbax-checkpoint"),
    )


def program(who: str, workload: str) -> Callable[[int], None]:
    """Steps, with checkpoints or without; or checkpoints alone."""
    keep_freed_memory()  # as launch.py does, before jax is there
    import jax

    from tljax.assembly.training import training
    from tljax.checkpoints import run
    from tljax.train.job import tree_of

    folder = tempfile.TemporaryDirectory()
    minilm = next(each for name, each in WORKLOADS.items() if each.model == "minilm" and "full" in name)
    parts = training(experiment_of(minilm, Path(folder.name)))
    batch = jax.device_put({"train": our_batch(minilm)})
    checkpoints = run.RunCheckpoints(Path(folder.name) / "checkpoints")
    if who == "without digests":
        run.digesting = lambda leaves: lambda: dict.fromkeys(leaves, "00000000")
    state, number = parts.state, 0

    def save() -> None:
        nonlocal number
        number += 1
        checkpoints.save(number, tree_of(state), {"step": number})

    def work(count: int) -> None:
        nonlocal state
        if workload == DIGESTS:
            for _ in range(count):
                save()
                checkpoints.wait()
            return
        if who == "ours":
            save()
        for _ in range(count):
            state, metrics = parts.step(state, parts.frozen, batch, parts.key)
        jax.block_until_ready(metrics)

    work.folder = folder  # as long as the program
    return work


if __name__ == "__main__":
    main()
