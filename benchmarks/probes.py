"""Many probes on the same features, at once against one after another; and a path of penalties against scikit-learn.

    python -m benchmarks.probes [--only "64 heads, 6 classes"] [--rounds 5] [--any-load]

The features are MiniLM's for 6 classes and 77 classes in number and width (5452 × 384 and 10,003 × 384), and are
random: clusters around one centre a class. A turn is a whole grid, or a whole path, in a process that has done it
before. scikit-learn fits each C from the last one's weights (`warm_start`), by L-BFGS with its own tolerance; ours has
one at which its objective is no higher, which is checked. Results go to benchmarks/results/probes.jsonl.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.measuring import benchmark

WIDTH = 384
PATH = tuple(10.0**k for k in np.arange(-3, 3.5, 0.5))
TOLERANCE = 2e-5
"""The largest gradient at which ours ends; scikit-learn's is 1e-4, and its end is as good as ours at this."""
GRID = dict(
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), decays=(0.0, 1e-3, 1e-2, 1e-1), seeds=(0, 1), shots=(10, None), steps=200
)
"""64 settings."""


class Workload(NamedTuple):
    """`kind` "heads" or "path", on so many examples of so many classes."""

    kind: str
    examples: int
    classes: int
    target: float


WORKLOADS = {
    "64 heads, 6 classes": Workload("heads", 5452, 6, 8.0),
    "64 heads, 77 classes": Workload("heads", 10003, 77, 3.0),
    "logistic regression, 13 penalties, 6 classes": Workload("path", 5452, 6, 3.0),
}


def main() -> None:
    def turns(name: str) -> tuple[dict[str, int], tuple[str, ...]]:
        peer = "one by one" if WORKLOADS[name].kind == "heads" else "scikit-learn"
        return {"ours": 1, peer: 1}, (peer,)

    benchmark(
        __doc__,
        "benchmarks.probes",
        {name: workload.target for name, workload in WORKLOADS.items()},
        program=lambda program, name: PROGRAMS[program](WORKLOADS[name]),
        turns=turns,
        rounds=5,
        packages=("jax", "optax", "tljax", "scikit-learn"),
    )


def data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """(features, labels): unit vectors, as sentence embeddings are."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, workload.classes, workload.examples)
    centres = generator.normal(size=(workload.classes, WIDTH))
    features = centres[labels] + 3.0 * generator.normal(size=(workload.examples, WIDTH))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int32)


def ours(workload: Workload) -> Callable[[int], object]:
    """The whole grid in one loop, or the whole path."""
    features, labels = data(workload)
    if workload.kind == "heads":
        from tljax.train.heads import Heads, train_heads

        return lambda count: [train_heads(Heads(**GRID), features, labels, workload.classes) for _ in range(count)]
    return lambda count: [our_path(features, labels, workload.classes) for _ in range(count)]


def our_path(features: np.ndarray, labels: np.ndarray, classes: int) -> list[dict[str, np.ndarray]]:
    from tljax.train.probe import Probe, candidates

    found = candidates(Probe(C=PATH, max_iterations=1000, tolerance=TOLERANCE), features, labels, classes)
    return [{name: np.asarray(x) for name, x in each.weights.items()} for each in found]


def one_by_one(workload: Workload) -> Callable[[int], object]:
    """Each setting of the grid by itself, by the same compiled loop."""
    from itertools import product

    from tljax.train.heads import Heads, train_heads

    features, labels = data(workload)
    axes = ("learning_rates", "decays", "seeds", "shots")
    grids = [
        Heads(**GRID)._replace(**{axis: (value,) for axis, value in zip(axes, values, strict=True)})
        for values in product(*(GRID[axis] for axis in axes))
    ]
    return lambda count: [train_heads(grid, features, labels, workload.classes) for grid in grids * count]


def scikit_learn(workload: Workload) -> Callable[[int], object]:
    """The path by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    features, labels = data(workload)

    def path() -> list[float]:
        model, found = LogisticRegression(max_iter=1000, tol=1e-4, warm_start=True), []
        for c in PATH:
            model.set_params(C=c).fit(features, labels)
            found.append(objective(features, labels, model.coef_.T, model.intercept_, c))
        return found

    theirs = path()
    mine = [
        objective(features, labels, each["kernel"], each["bias"], c)
        for c, each in zip(PATH, our_path(features, labels, workload.classes), strict=True)
    ]
    higher = [(c, a, b) for c, a, b in zip(PATH, mine, theirs, strict=True) if a > b * (1 + 1e-4)]
    if higher:
        raise SystemExit(f"Our objective is higher than scikit-learn's: {higher}")
    return lambda count: [path() for _ in range(count)]


def objective(features: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, c: float) -> float:
    """The mean log loss and the penalty, in float64."""
    logits = features.astype(np.float64) @ kernel + bias
    highest = logits.max(1, keepdims=True)
    log_total = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    loss = log_total - logits[np.arange(len(labels)), labels]
    return float(loss.mean() + 0.5 * (kernel**2).sum() / (c * len(labels)))


PROGRAMS = {"ours": ours, "one by one": one_by_one, "scikit-learn": scikit_learn}


if __name__ == "__main__":
    main()
