"""Programs that do the same work, measured in turns: each is a process of its own, and waits while another works."""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OTHER_LOAD = 0.3
"""Processors that the rest of the machine may keep busy, at most, while a program works."""
TICK = os.sysconf("SC_CLK_TCK")


class Program:
    """A process that runs `serve`: it does `count` units of work when asked, and says how many seconds they took."""

    def __init__(self, module: str, *arguments: str):
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{' '.join(self.process.args)} ended with {self.process.wait()}.")

    def run(self, count: int) -> tuple[float, float]:
        """(seconds, processors that everything else kept busy meanwhile)."""
        busy, own, started = machine_seconds(), self.seconds(), time.perf_counter()
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        seconds = self._read()["seconds"]
        other = (machine_seconds() - busy) - (self.seconds() - own)
        return seconds, max(0.0, other / (time.perf_counter() - started))

    def seconds(self) -> float:
        """Processor time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def machine_seconds() -> float:
    """Processor time that the whole machine has been busy."""
    user, nice, system, _, _, irq, soft = (int(x) for x in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / TICK


def serve(work: Callable[[int], Any], **facts: Any) -> None:
    """Does what `Program.run` asks for, to the end of the input. `work(count)` returns when its results are there."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        work(int(line))
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


def in_turns(
    programs: Mapping[str, Program], *, counts: Mapping[str, int], rounds: int, any_load: bool = False
) -> dict[str, dict[str, Any]]:
    """Name → {"min", "median": seconds a unit of work, "other_load": the highest of the turns that count}.

    Every program has one turn that does not count. A turn in which everything else kept more than `OTHER_LOAD`
    processors busy is taken again, up to three times the rounds in all.

    Args:
      programs: to be measured, in the order of their turns.
      counts: units of work in a turn.
      rounds: turns of each.
      any_load: count every turn.
    """
    for name, program in programs.items():
        program.run(counts[name])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(3 * rounds):
        for name, program in programs.items():
            if len(found[name]) < rounds:
                seconds, other = program.run(counts[name])
                if any_load or other <= OTHER_LOAD:
                    found[name].append((seconds / counts[name], other))
    lacking = [name for name, turns in found.items() if len(turns) < rounds]
    if lacking:
        sys.exit(
            f"Rejected: other work on this machine took more than {OTHER_LOAD} processors in most turns of "
            f"{', '.join(lacking)}. Stop it, or look at the figures with --any-load, which records nothing."
        )
    return {
        name: {
            "min": min(seconds for seconds, _ in turns),
            "median": statistics.median(seconds for seconds, _ in turns),
            "other_load": round(max(other for _, other in turns), 2),
        }
        for name, turns in found.items()
    }


def row(
    workload: str, turns: Mapping[str, Mapping[str, Any]], *, target: float | None, peers: Sequence[str], **facts: Any
) -> dict[str, Any]:
    """A result: seconds, and ours against the best of `peers`, by minima and by medians; above 1 we are faster."""
    ratios = {kind: min(turns[name][kind] for name in peers) / turns["ours"][kind] for kind in ("min", "median")}
    return {"workload": workload, "target": target, "ratio": ratios, "seconds": dict(turns), **facts}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a line a result."""
    print(f"{'workload':44} {'ratio of minima':>16} {'of medians':>11} {'target':>7}   seconds (median)")
    for each in rows:
        seconds = ", ".join(f"{name} {turn['median']:.4g}" for name, turn in each["seconds"].items())
        target = "" if each["target"] is None else f"{each['target']:g}"
        ratio = each["ratio"]
        print(f"{each['workload']:44} {ratio['min']:16.2f} {ratio['median']:11.2f} {target:>7}   {seconds}")


def benchmark(
    text: str,
    module: str,
    targets: Mapping[str, float],
    *,
    program: Callable[[str, str], Callable[[int], Any]],
    turns: Callable[[str], tuple[Mapping[str, int], Sequence[str]]],
    rounds: int,
    packages: Sequence[str],
) -> None:
    """The command `python -m MODULE`: measures the workloads, shows them and appends them to results/NAME.jsonl.

    Args:
      text: what it is, for the help.
      module: "benchmarks.NAME".
      targets: workload → the ratio to reach.
      program: (name of a program, workload) → what `serve` takes.
      turns: workload → (program → units of work in a turn, the peers among them); "ours" is one of the programs.
      rounds: turns that count, by default.
      packages: whose versions are recorded.
    """
    parser = argparse.ArgumentParser(description=text.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(targets))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--any-load", action="store_true", help="measure beside other work; nothing is recorded")
    parser.add_argument("--serve", nargs=2, metavar=("PROGRAM", "WORKLOAD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(program(*options.serve))
        return
    rows = []
    for name in options.only or targets:
        counts, peers = turns(name)
        programs = {each: Program(module, "--serve", each, name) for each in counts}
        try:
            measured = in_turns(programs, counts=counts, rounds=options.rounds, any_load=options.any_load)
        finally:
            for each in programs.values():
                each.close()
        rows.append(row(name, measured, target=targets[name], peers=peers))
    show(rows)
    if not options.any_load:
        record(module.rpartition(".")[2], rows, packages)


def record(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> None:
    """Appends results, each with a description of the machine, to results/NAME.jsonl."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "python": platform.python_version()},
        "versions": {package: version(package) for package in packages},
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf8") as file:
        file.writelines(json.dumps({**each, **facts}) + "\n" for each in rows)


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf8")) if info.is_file() else None
    return found[1] if found else platform.processor()
