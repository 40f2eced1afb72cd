"""Tiny models trained on meshes of eight simulated devices, in a process of its own; prints what it finds as JSON.

    python -m tests.assembly.on_meshes FOLDER WHAT …

WHAT is FAMILY:STRATEGY:PARTS:MESH, of the tables below or "*" for all of them: `bert:lora:1:fsdp` trains a BERT with
LoRA on one device and on the mesh `fsdp`, in one part a batch, and compares the two runs; in two parts "*" is one mesh.
Or it is checkpoints:MESH:OTHER: a run on MESH is saved, restored on OTHER and continued there.

The optimizer is gradient descent with momentum, or Adam with an epsilon above the gradients: Adam's own divides by
moments that may be nothing but rounding, and then two orders of a sum differ as much as two runs.
"""

import csv
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tljax.assembly.experiment import Experiment, build
from tljax.assembly.training import make_job
from tljax.base.paths import flatten
from tljax.checkpoints.digest import digests_there
from tljax.checkpoints.run import RunCheckpoints, _flat
from tljax.data.characters import PROTEIN
from tljax.sharding import make_mesh

STEPS = 4
BATCH = 16
ALONE = {"data": 1}
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "tensor": {"tensor": 2, "data": 4},
}
OTHERS = {"one": ALONE, "four": {"fsdp": 4}, "square": {"data": 2, "fsdp": 2}, "columns": {"tensor": 4}, **MESHES}
TEXT = dict(vocab_size=32, max_position_embeddings=24, type_vocab_size=2)
BODY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.2)
FAMILIES = {
    "bert": {"family": "bert", "variant": {**BODY, **TEXT}, "processor": {"name": "characters", "lengths": (16,)}},
    "vit": {"family": "vit", "variant": {**BODY, "image_size": 8, "patch_size": 4}},
    "resnet": {
        "family": "resnet",
        "variant": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    },
}
SGD = {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 0.01, "clip": 5.0}
ADAM = {"name": "adamw", "learning_rate": 0.5, "eps": 1.0, "weight_decay": 0.01}
LORA = {"lora": {"rank": 2, "dropout": 0.1}}
ALL = ("bert", "vit", "resnet")
TOWERS = ("bert", "vit")
STRATEGIES = {
    "fine_tune": (ALL, {"fine_tune": {}}),
    "frozen statistics": (("resnet",), {"fine_tune": {"batch_stats": "frozen"}}),
    "freeze": (ALL, {"freeze": {"rules": ["embed"]}}),
    "last_k": (ALL, {"last_k": {"k": 1}}),
    "bitfit": (ALL, {"bias_only": {}}),
    "lora": (ALL, LORA),
    "dora": (ALL, {"lora": {"rank": 2, "dora": True}}),
    "ia3": (TOWERS, {"ia3": {}}),
    "bottleneck": (TOWERS, {"bottleneck": {"width": 4}}),
    "parallel": (TOWERS, {"bottleneck": {"width": 4, "parallel": True}}),
    "prefix": (TOWERS, {"prefix": {"length": 2}}),
    "prompt": (("bert",), {"prompt": {"length": 2}}),
    "visual prompt": (("vit",), {"visual_prompt": {"length": 2, "deep": True}}),
    "l2_sp": (ALL, {"l2_sp": {}}),
    "mixout": (ALL, {"mixout": {}}),
    "layer decay": (ALL, {"layer_decay": {"rate": 0.5}}),
    "lp_ft": (ALL, {"lp_ft": {"probe": 2, "unit": "steps"}}),
    "gradual": (ALL, {"gradual_unfreezing": {"every": 1, "unit": "steps"}}),
    "ema": (ALL, {"ema": {"decay": 0.5}}),
    "int8": (TOWERS, {**LORA, "quantize": {"kind": "int8"}}),
    "nf4": (TOWERS, {**LORA, "quantize": {"kind": "nf4", "double": True}}),
}
CONTINUED = ("one", "square", "tensor")
WITH_ADAM = ("ema", "gradual", "bitfit")


def save_data(folder: Path) -> None:
    """Texts of different lengths, and images, of two classes, one of them three times as frequent."""
    generator = np.random.default_rng(0)
    labels = (np.arange(48) % 4 == 0).astype(np.int64)
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label in labels:
            letters = generator.choice(list(PROTEIN[label * 5 :]), size=generator.integers(3, 14))
            writer.writerow(["".join(letters), "ab"[label]])
    images = generator.integers(0, 200, (48, 8, 8, 3)) + 50 * labels[:, None, None, None]
    np.savez(folder / "images.npz", image=images.astype(np.uint8), label=labels)


def config_of(folder: Path, family: str, strategy: str, parts: int) -> dict[str, Any]:
    """Balanced weights: a mean of the devices' means would then be another loss than the mean of all examples."""
    text = family == "bert"
    columns = {"columns": {"text": "text", "label": "label"}} if text else {"processor": {"size": 8}}
    source = f"csv:{folder / 'texts.csv'}" if text else f"npz:{folder / 'images.npz'}"
    chosen = {name: dict(options) for name, options in STRATEGIES[strategy][1].items()}
    if family == "resnet" and "lora" in chosen:  # which takes the kernels of attentions by itself
        chosen["lora"]["targets"] = "backbone/stage.*/conv/kernel"
    return {
        "model": FAMILIES[family],
        "task": {"name": "classification", "pool": "mean"},
        "strategy": chosen,
        "optim": {**(ADAM if strategy in WITH_ADAM else SGD), "schedule": "linear", "warmup": 0.0},
        "data": {"train": {"source": source, "class_weights": "balanced", **columns}},
        "train": {"batch_size": BATCH, "steps": STEPS, "accumulate": parts},
        "mesh": ALONE,
    }


def on(experiment: Experiment, axes: dict[str, int]) -> Experiment:
    return experiment._replace(mesh=make_mesh(**axes))


def trained(experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """(numbers of each step, flat leaves of the last state and of its average)."""
    job, numbers = make_job(experiment), {"loss": [], "gradient_norm": []}
    state, batches = job.state, job.batches(0)
    for done in range(STEPS):
        state, metrics = job.step(job.before(done, state), next(batches))
        for name, values in numbers.items():
            values.append(float(metrics[name]))
    leaves = {"live": state.live, "average": state.average, "batch_stats": flatten(state.batch_stats)}
    spread = [path for path, leaf in state.live.items() if not leaf.sharding.is_fully_replicated]
    return {**numbers, "spread": len(spread)}, jax.tree.map(np.asarray, leaves)


def compared(experiment: Experiment, one: tuple, many: tuple) -> dict[str, Any]:
    """How far two runs are apart: numbers as parts of themselves, leaves as parts of what training moved.

    `leaves` is the largest difference in any leaf over the largest move in any; `own` the same within each leaf, the
    worst of them, where a leaf that moves by less than a thousandth of the others counts as moved by that much.
    """
    start = {**flatten(experiment.variables["params"]), **flatten(experiment.variables["batch_stats"])}
    (a, first), (b, second) = one, many
    moves, gaps = {}, {}
    for kind in first:
        assert first[kind].keys() == second[kind].keys()
        for path, leaf in first[kind].items():
            moves[kind, path] = float(np.abs(leaf - np.asarray(start[path], np.float32)).max())
            gaps[kind, path] = float(np.abs(leaf - second[kind][path]).max())
    furthest = max(moves.values())
    ratios = {key: gap / max(moves[key], furthest / 1000) for key, gap in gaps.items()}
    worst = max(ratios, key=ratios.get)
    apart = lambda name: max(abs(x - y) / abs(x) for x, y in zip(a[name], b[name], strict=True))  # noqa: E731
    return {
        "loss": apart("loss"),
        "gradient_norm": apart("gradient_norm"),
        "leaves": max(gaps.values()) / furthest,
        "own": ratios[worst],
        "worst": ":".join(worst),
        "moved": furthest,
        "statistics": max((moves[key] for key in moves if key[0] == "batch_stats"), default=0.0),
        "spread": b["spread"],
    }


def matrix(folder: Path, family: str, strategy: str, parts: str, mesh: str) -> dict[str, Any]:
    found = {}
    cases = itertools.product(
        FAMILIES if family == "*" else [family],
        STRATEGIES if strategy == "*" else [strategy],
        "12" if parts == "*" else [parts],
    )
    for each, name, count in (case for case in cases if case[0] in STRATEGIES[case[1]][0]):
        experiment = build(config_of(folder, each, name, int(count)))
        alone = trained(experiment)
        for key in [mesh] if mesh != "*" else MESHES if count == "1" else ["all"]:
            many = trained(on(experiment, MESHES[key]))
            found[f"{each}:{name}:{count}:{key}"] = compared(experiment, alone, many)
        jax.clear_caches()
    return found


def checkpoints(folder: Path, origin: str, others: Iterable[str]) -> dict[str, Any]:
    """A run on one mesh, saved after two steps, restored on others, saved back, and on some of them continued."""
    experiment, found = build(config_of(folder, "bert", "ema", 1)), {}
    job = make_job(on(experiment, OTHERS[origin]))
    state, batches = job.state, job.batches(0)
    for _ in range(2):
        state, _ = job.step(state, next(batches))
    expected = {name: np.asarray(leaf) for name, leaf in _flat(state)[0].items()}
    digests, saved = digests_there(_flat(state)[0]), folder / f"checkpoints-{origin}"
    save(saved, state)
    undisturbed = float(job.step(state, next(batches))[1]["loss"])
    for other in others:
        here, back = make_job(on(experiment, OTHERS[other])), folder / f"{origin}-{other}"
        restored = restore(saved, here.shapes(2))
        save(back, restored)
        flat, returned = _flat(restored)[0], _flat(restore(back, job.shapes(2)))[0]
        found[f"checkpoints:{origin}:{other}"] = {
            "bits": all(np.asarray(flat[key]).tobytes() == x.tobytes() for key, x in expected.items()),
            "back": all(np.asarray(returned[key]).tobytes() == x.tobytes() for key, x in expected.items()),
            "misplaced": [key for key, x in _flat(here.shapes(2))[0].items() if x.sharding != flat[key].sharding],
            "digests": digests == digests_there(flat) == record(saved) == record(back),
            "devices": len({device for x in flat.values() for device in x.sharding.device_set}),
            "spread": sum(not x.sharding.is_fully_replicated for x in flat.values()),
        }
        if other in CONTINUED:
            loss = float(here.step(restored, next(here.batches(2)))[1]["loss"])
            found[f"checkpoints:{origin}:{other}"]["loss"] = abs(loss - undisturbed) / undisturbed
    return found


def save(folder: Path, state: Any) -> None:
    opened = RunCheckpoints(folder)
    opened.save(2, state, {})
    opened.close()


def restore(folder: Path, template: Any) -> Any:
    opened = RunCheckpoints(folder)
    state, _ = opened.restore(template)
    opened.close()
    return state


def record(folder: Path) -> dict[str, str]:
    leaves = json.loads((folder / "2" / "record" / "metadata").read_text())["leaves"]
    return {name: leaf["digest"] for name, leaf in leaves.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    save_data(folder)
    assert jax.device_count() == 8
    results: dict[str, Any] = {}
    for what in sys.argv[2:]:
        kind, *rest = what.split(":")
        if kind == "checkpoints":
            results |= checkpoints(folder, rest[0], OTHERS if rest[1] == "*" else rest[1].split(","))
        else:
            results |= matrix(folder, kind, *rest)
    print(json.dumps(results))
