"""What each score of transferability costs: the first call, which compiles, and the least of some more.

    python -m benchmarks.transferability [--examples 5000] [--width 768] [--classes 100] [--repeats 5]

Random features in float32 that know a little of the class. Seconds by the clock, and of processor time of all cores,
which other work on the machine disturbs less (with OPENBLAS_NUM_THREADS=1: threads that wait for a core count). Below
stands the singular value decomposition in float64, by NumPy, with which published code of LogME begins.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tljax.base.tables import lookup
from tljax.transferability import NEEDS, TABLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("examples", 5000), ("width", 768), ("classes", 100), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    rows, labels = data(options.examples, options.width, options.classes)
    print(f"{'':20} {'score':>9} {'first':>7} {'clock':>7} {'processor':>9}")
    for name in TABLE:
        score, given = lookup(TABLE, name, what="score"), rows[NEEDS[name]]
        value, first, clock, processor = cost(lambda score=score, given=given: score(given, labels), options.repeats)
        print(f"{name:20} {value:9.4f} {first:7.2f} {clock:7.2f} {processor:9.2f}", flush=True)
    wide = rows["features"].astype(np.float64)
    _, first, clock, processor = cost(lambda: np.linalg.svd(wide, full_matrices=False), options.repeats)
    print(f"{'NumPy, SVD':20} {'':9} {first:7.2f} {clock:7.2f} {processor:9.2f}")


def data(examples: int, width: int, classes: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(rows by what a score needs, labels)."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(examples) % classes)
    features = generator.normal(size=(examples, width)) + generator.normal(size=(classes, width))[labels] / 4
    features = features.astype(np.float32)
    exponents = np.exp(features - features.max(axis=1, keepdims=True))
    return {"features": features, "probabilities": exponents / exponents.sum(axis=1, keepdims=True)}, labels


def cost(work: Callable[[], Any], repeats: int) -> tuple[Any, float, float, float]:
    """(the result, seconds of the first call, the least by the clock of `repeats` more, the least of the processor)."""
    times = []
    for _ in range(repeats + 1):
        clock, processor = time.perf_counter(), time.process_time()
        result = work()
        times.append((time.perf_counter() - clock, time.process_time() - processor))
    return result, times[0][0], min(t for t, _ in times[1:]), min(t for _, t in times[1:])


if __name__ == "__main__":
    main()
