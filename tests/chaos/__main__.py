"""Injects every fault, prints a table, and exits with 1 where anything was lost."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.chaos.damage import fuzz
from tests.chaos.faults import Fault
from tests.chaos.harness import Harness, Outcome
from tests.chaos.scenarios import SCENARIOS, prepare

MOMENTS, BITS, CUTS = 8, 200, 50
"""Kills at any moment, flipped bits, cut files."""


def cases(seed: int) -> list[tuple[str, tuple[Fault, ...]]]:
    """(scenario, faults of successive starts): those of the table, and kills at any moment of a run."""
    generator, names = np.random.default_rng(seed), list(SCENARIOS)
    found = [(name, case) for name, scenario in SCENARIOS.items() for case in scenario.cases]
    for number in range(MOMENTS):
        delays = generator.uniform(0.3, 6.0, size=generator.integers(1, 4))
        found.append((names[number % len(names)], tuple(Fault("", 1, float(delay)) for delay in delays)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kills runs and damages checkpoints.")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, bits and cuts")
    parser.add_argument("--only", help="the scenarios and points whose name holds this text")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        harness = Harness(folder)
        chosen = [(s, f) for s, f in cases(options.seed) if not options.only or options.only in f"{s} {f}"]
        outcomes = [
            harness.case(scenario, faults, number)
            for number, (scenario, faults) in enumerate(track(chosen, "killing runs", console=console))
        ]
        damaged = {}
        if not options.only:
            for kind, count in (("bit", BITS), ("cut", CUTS)):
                damaged[kind] = fuzz(folder / kind, count, kind, seed=options.seed)
    console.print(table(outcomes, damaged))
    failed = [each for each in outcomes if not each.fine]
    for each in failed:
        console.print(f"{each.scenario}: {', '.join(map(str, each.faults))}: died {each.died}, lost {each.lost}")
    return 1 if failed or any("SILENTLY WRONG" in found for found in damaged.values()) else 0


def table(outcomes: list[Outcome], damaged: dict[str, dict[str, int]]) -> Table:
    """Fault, times injected, runs that ended bit-equal, what was lost."""
    found = Table(title="Faults", title_justify="left")
    for column in ("fault", "injected", "ended bit-equal", "lost"):
        found.add_column(column, justify="left" if column == "fault" else "right")
    kinds = Counter(map(_named, outcomes))
    for kind, count in kinds.items():
        mine = [each for each in outcomes if _named(each) == kind]
        found.add_row(kind, str(count), str(sum(e.fine for e in mine)), str(sum(bool(e.lost) for e in mine)))
    for kind, results in damaged.items():
        name = {"bit": "a flipped bit in a checkpoint", "cut": "a cut file in a checkpoint"}[kind]
        listing = ", ".join(f"{count} {outcome}" for outcome, count in sorted(results.items()))
        found.add_row(f"{name} ({listing})", str(sum(results.values())), "–", str(results.get("SILENTLY WRONG", 0)))
    fine, lost = sum(each.fine for each in outcomes), sum(bool(each.lost) for each in outcomes)
    found.add_row("runs, in all", str(len(outcomes)), str(fine), str(lost))
    return found


def _named(outcome: Outcome) -> str:
    points = dict.fromkeys(f"{each.what}, {each.point or 'any moment'}" for each in outcome.faults)
    return f"{outcome.scenario}: {'; then '.join(points)}"


if __name__ == "__main__":
    sys.exit(main())
