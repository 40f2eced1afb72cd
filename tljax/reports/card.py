"""The model card of an export: README.md in the format of Hugging Face, from the records of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tljax.base.configs import flat_config
from tljax.base.files import write_whole
from tljax.reports.records import Run, read_json, read_outcomes, read_records
from tljax.reports.significance import bootstrap_of_counts, wilson
from tljax.reports.tables import markdown
from tljax.reports.words import said, show, shown_split

PIPELINES = {
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "causal_lm": "text-generation",
    "permutation_lm": "text-generation",
    "masked_lm": "fill-mask",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "ctc": "automatic-speech-recognition",
    "zero_shot": "zero-shot-image-classification",
    "similarity": "sentence-similarity",
}
"""Task → what the hub calls it; a classification is called by what it reads."""

LICENCES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "gnu general public license version 3": "gpl-3.0",
    "gnu affero general public license": "agpl-3.0",
    "mozilla public license version 2": "mpl-2.0",
    "bsd 3-clause": "bsd-3-clause",
    "bsd 2-clause": "bsd-2-clause",
}
"""How the text of a licence begins → its name on the hub."""


OWN = ("cache", "wandb")
"""Keys of `config.train` that say where something lies, and nothing of the model."""


class Licence(NamedTuple):
    """`name` on the hub, "other" or "unknown" among them, and `where` it was found, in words."""

    name: str
    where: str


def write_card(folder: Path, workdir: Path, config: Mapping[str, Any], *, base: Path | None, origin: str) -> Path:
    """Writes README.md into the folder of an export; returns its path.

    Args:
      folder: of the export, written before: its files tell how it is loaded.
      workdir: the run folder, whose records give metrics, costs and what was frozen.
      config: of the run.
      base: the folder or file of the checkpoint that the run started from; None where it started from random weights.
      origin: which checkpoint of the run it is, in words.
    """
    from huggingface_hub import ModelCard

    run = _read(workdir, config)
    licence = licence_of(base) if base is not None else Licence("unknown", "the run started from random weights")
    library, loading = _loading(folder)
    data = _front_matter(folder, run, licence, library)
    parts = [
        f"# {folder.name if folder.name not in ('export', 'adapter') else workdir.resolve().name}",
        _introduction(run, origin),
        "## Base checkpoint",
        _base(run, licence),
        "## Data",
        _data(run),
        "## Training",
        _training(run),
        "## Results",
        _results(run),
        "## How to load it",
        loading,
    ]
    content = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    ModelCard(content)  # raises where the hub could not read it
    return write_whole(folder / "README.md", content)


def licence_of(base: Path) -> Licence:
    """The licence of a checkpoint, from what stands beside it: its own card, its config.json, a file of its text."""
    from huggingface_hub import ModelCard

    folder = base if base.is_dir() else base.parent
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text(encoding="utf8", errors="replace")
        stated = ModelCard(text, ignore_metadata_errors=True).data.get("license")
        if stated:
            return Licence(stated[0] if isinstance(stated, list) else str(stated), "its own model card")
    stated = read_json(folder / "config.json").get("license")
    if isinstance(stated, str) and stated:
        return Licence(stated, "its config.json")
    for path in sorted(folder.glob("LICEN[CS]E*")) + sorted(folder.glob("COPYING*")):
        head = " ".join(path.read_text(encoding="utf8", errors="replace")[:400].lower().replace(",", " ").split())
        named = next((name for words, name in LICENCES.items() if words in head), "other")
        return Licence(named, f"the file {path.name} beside it")
    return Licence("unknown", "neither a model card, nor config.json, nor a licence file beside the weights states one")


def _read(workdir: Path, config: Mapping[str, Any]) -> Run:
    path = workdir / "metrics.jsonl"
    records = read_records(path) if path.is_file() else []
    about, inspect = read_json(workdir / "config.json"), read_json(workdir / "inspect.json")
    return Run(workdir, dict(config), about, inspect, records, read_outcomes(workdir / "records.jsonl"))


def _front_matter(folder: Path, run: Run, licence: Licence, library: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    task, names = _task(folder, run), _data_names(run)
    found, source = run.last_evaluations(), str((run.config.get("model") or {}).get("source") or "")
    splits = [shown_split(found)] if found else []
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=names.get(split, split),
            dataset_name=names.get(split, split),
            dataset_split=split,
            metric_type=name,
            metric_name=said(name),
            metric_value=value,
        )
        for split in splits
        for name, value in found[split]["metrics"].items()
    ]
    return ModelCardData(
        license=licence.name,
        base_model=source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else None,
        library_name=library,
        pipeline_tag=task,
        tags=["tljax", "transfer-learning", *(run.config.get("strategy") or {})],
        datasets=sorted({name for name in names.values() if name.isidentifier()}) or None,
        metrics=sorted({name for split in splits for name in found[split]["metrics"]}) or None,
        model_name=run.folder.resolve().name,
        eval_results=results or None,
    )


def _task(folder: Path, run: Run) -> str | None:
    name = (run.config.get("task") or {}).get("name", "classification")
    if name != "classification":
        return PIPELINES.get(name)
    told = read_json(folder / "preprocessor_config.json")
    if told:
        return "audio-classification" if "sampling_rate" in told else "image-classification"
    texts = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    return "text-classification" if any((folder / name).is_file() for name in texts) else None


def _introduction(run: Run, origin: str) -> str:
    task, model = run.config.get("task") or {}, run.config.get("model") or {}
    strategy = " + ".join(run.config.get("strategy") or {}) or "fine_tune"
    source = _public(model["source"]) if model.get("source") else f"a {model.get('family')} from random weights"
    outcome = run.outcome
    commit = f", commit {outcome['commit']}" if outcome.get("commit") else ""
    by = f" by tljax {outcome['version']}{commit}" if outcome.get("version") else " by tljax"
    what = task.get("name", "classification").replace("_", " ")
    return f"A model for {what}: {source} with the strategy {strategy}, trained{by} ({origin})."


def _base(run: Run, licence: Licence) -> str:
    model = run.config.get("model") or {}
    source = _public(model["source"]) if model.get("source") else "none: the weights were random"
    sha256 = f"\n- sha256 of its weights: `{model['sha256']}`" if model.get("sha256") else ""
    plain = {
        "unknown": f"Licence: **unknown** ({licence.where}). Find out before you pass this model on.",
        "other": f"Licence: none of the well-known ones; its text is in {licence.where}.",
    }
    return f"- Source: `{source}`{sha256}\n- {plain.get(licence.name, f'Licence: {licence.name} ({licence.where}).')}"


def _data_names(run: Run) -> dict[str, str]:
    """Entry → the name of its data set, without who knows it: "tljax:trec" → "trec"."""
    entries = run.config.get("data") or {}
    named = {name: str(entry.get("source", "")) for name, entry in entries.items() if isinstance(entry, Mapping)}
    return {name: Path(source.partition(":")[2] or source).name.partition(":")[0] for name, source in named.items()}


def _data(run: Run) -> str:
    rows = [
        [name, f"`{_public(str(entry['source']))}`", _settings({k: v for k, v in entry.items() if k != "source"})]
        for name, entry in (run.config.get("data") or {}).items()
        if isinstance(entry, Mapping) and entry.get("source")
    ]
    return markdown(["entry", "source", "what of it"], rows).rstrip() if rows else "The config names no data."


def _training(run: Run) -> str:
    config, outcome = run.config, run.outcome
    lines = [f"- Strategy: {_settings(config.get('strategy') or {'fine_tune': {}})}"]
    for section in ("method", "optim", "train"):
        if config.get(section):
            lines.append(f"- {section}: {_settings({k: v for k, v in config[section].items() if k not in OWN})}")
    lines.append(f"- seed: {config.get('seed')}")
    if outcome.get("step"):
        lines.append(f"- {outcome['step']:,} steps in {outcome['seconds']:.0f} s")
    stages = run.inspect.get("stages")
    if not stages:
        return "\n".join(lines)
    rows = [[row["stage"], f"{row['parameters']:,}", f"{row['live']:,}" if row["live"] else "frozen"] for row in stages]
    lines += ["", "What trained (at the start of the run), stage by stage:", ""]
    return "\n".join(lines) + "\n" + markdown(["stage", "parameters", "live"], rows).rstrip()


def _results(run: Run) -> str:
    found = run.last_evaluations()
    if not found:
        return "The run has recorded no evaluation."
    rows, reasons = [], []
    for split, record in found.items():
        for name, value in record["metrics"].items():
            low, high, how = _bounds(name, value, record.get("tables") or {})
            interval = f"{show(name, low)} to {show(name, high)}" if how else "–"
            rows.append([split, said(name), show(name, value), interval])
            reasons.append(how)
    table = markdown(["split", "metric", "value", "95 % interval"], rows)
    kinds = "; ".join(dict.fromkeys(how for how in reasons if how))
    note = f"Intervals are over the examples of the split, for this one run: {kinds}." if kinds else ""
    missing = "" if all(reasons) else " Where there is none, the records hold too little of each example."
    draws = run.of("probe")
    mean = f" Values are means over {len(draws)} draws of the training examples." if len(draws) > 1 else ""
    chosen = " The checkpoint was chosen on validation, so its figure there is a little too good."
    chosen = chosen if "validation" in found and len(found) > 1 else ""
    return f"{table}\n{note}{missing}{mean}{chosen}".rstrip()


def _bounds(name: str, value: float, tables: Mapping[str, Any]) -> tuple[float, float, str]:
    """(low, high, how) of a metric; how is "" where nothing is known."""
    counts = tables.get("confusion")
    if not counts:
        return 0.0, 0.0, ""
    total = sum(map(sum, counts))
    if name == "accuracy":
        return *wilson(value * total, total), "accuracy by Wilson's"
    if name in ("macro_f1", "matthews"):
        return *bootstrap_of_counts(counts, name), f"{said(name)} by a bootstrap"
    return 0.0, 0.0, ""


def _public(source: str) -> str:
    """A source without the folders of the machine: "csv:/data/mine/train.csv" → "csv:train.csv"."""
    kind, colon, path = source.rpartition(":")
    return f"{kind}{colon}{Path(path).name}" if path.startswith(("/", "~", ".")) and "://" not in source else source


def _settings(section: Mapping[str, Any]) -> str:
    """A section in a line: `lora.rank` = 8, …"""
    flat = flat_config(section)
    return ", ".join(f"`{key}`" if value == {} else f"`{key}` = {value!r}" for key, value in flat.items())


def _loading(folder: Path) -> tuple[str, str]:
    """(library, how to load the folder with it and with tljax), told by the files that are there."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        code = f'PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), "FOLDER")'
        return "peft", _code(f"from peft import PeftModel\nfrom transformers import AutoModel\n\nmodel = {code}")
    ours = 'import tljax\n\nmodel, variables, processor = tljax.load_pretrained("FOLDER")'
    if (folder / "modules.json").is_file():
        theirs = 'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("FOLDER")'
        return "sentence-transformers", f"{_code(theirs)}\n\nor\n\n{_code(ours)}"
    architectures = read_json(folder / "config.json").get("architectures") or []
    if architectures and list(folder.glob("*.safetensors*")):
        cls = architectures[0]
        theirs = f'from transformers import {cls}\n\nmodel = {cls}.from_pretrained("FOLDER")'
        return "transformers", f"{_code(theirs)}\n\nor\n\n{_code(ours)}"
    return "tljax", _code(ours)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
