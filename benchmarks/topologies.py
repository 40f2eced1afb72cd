"""Steps of the pod configs, compiled for slices of TPU pods that are not there: the table of docs/scale.md.

    python -m benchmarks.topologies [--only pod_llama_lora] [--topology v5e:16x16] [--table]

Each is a process of its own, `launch.py inspect --topology`, so that its processor time is its own. A line for each
goes to benchmarks/results/topologies.jsonl, in the place of the one before; `--table` prints the table of what is there
and compiles nothing.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "topologies.jsonl"
CONFIGS = ("pod_vit_large", "pod_bert_large", "pod_llama_lora")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16")
COLUMNS = (
    *("config", "slice", "compiling", "arguments", "temporaries", "memory", "PFLOP a step", "again"),
    *("collectives", "sent", "moved", "arithmetic", "moving", "links", "step", "MFU at best"),
)


def measured(config: str, topology: str) -> dict[str, Any]:
    """What `inspect` tells of a config on a slice, and the processor seconds of it all."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["inspect", f"--config=configs/{config}.py", f"--topology={topology}", f"--output={file}"]
        subprocess.run([sys.executable, "launch.py", *command], cwd=ROOT, check=True, env={**os.environ})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(file.read_text(encoding="utf8"))
    del found["stages"]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    facts = {"date": datetime.date.today().isoformat(), "versions": {n: version(n) for n in ("jax", "libtpu", "tljax")}}
    return {"config": config, **found, "processor_seconds": spent, **facts}


def read() -> dict[tuple[str, str], dict[str, Any]]:
    """(config, slice) → the record."""
    lines = RESULTS.read_text(encoding="utf8").splitlines() if RESULTS.exists() else []
    return {(r["config"], r["topology"]): r for r in map(json.loads, lines)}


def table(records: list[dict[str, Any]]) -> str:
    """A row for each record; bytes and seconds are of a device and a step."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(record: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row, as in `COLUMNS`."""
    memory, flops, time, found = record["memory"], record["flops"], record["time"], record["collectives"]
    size = lambda count: f"{count / 1e9:.2f} GB"  # noqa: E731
    ms = lambda seconds: f"{1e3 * seconds:.0f} ms"  # noqa: E731
    kinds = sorted({each["kind"] for each in found})
    counts = (f"{sum(e['count'] for e in found if e['kind'] == kind)} {kind}" for kind in kinds)
    return (
        record["config"],
        record["topology"],
        f"{record['seconds']['compiling']:.0f} s ({record['processor_seconds']:.0f} s)",
        *(size(memory[name]) for name in ("arguments", "temporaries")),
        f"{size(memory['total'])} of {size(memory['hbm'])}",
        f"{flops['step'] / 1e15:.2f}",
        f"{flops['step'] / flops['model'] - 1:.0%}",
        ", ".join(counts),
        size(sum(each["sent"] for each in found)),
        size(record["moved"]),
        *(ms(time[name]) for name in ("arithmetic", "memory", "links")),
        f"{1e3 * time['step']:.0f} to {1e3 * time['apart']:.0f} ms",
        f"{time['mfu']:.0%}",
    )


def main() -> None:
    """Compiles what was asked for, and prints the table of all that is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONFIGS, help="one config")
    parser.add_argument("--topology", help="one slice, instead of v5e:4x4 and v5e:16x16")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    chosen = parser.parse_args()
    for config in () if chosen.table else (chosen.only,) if chosen.only else CONFIGS:
        for topology in (chosen.topology,) if chosen.topology else TOPOLOGIES:
            records = {**read(), (config, topology): measured(config, topology)}
            RESULTS.write_text("".join(json.dumps(r) + "\n" for r in records.values()), encoding="utf8")
    print(table(list(read().values())))


if __name__ == "__main__":
    main()
