"""`predict`: typed text, a file or a folder of inputs → one JSON line each, with labels and probabilities."""

import json
import sys
from pathlib import Path

from tljax.base.errors import UserError
from tljax.cli.common import build_experiment, chosen_variables
from tljax.cli.main import Arguments

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".oga")


def run(arguments: Arguments) -> int:
    """Predicts for every input; writes to `--output`, else to the screen and to the run's predictions/latest.jsonl."""
    records = gather(arguments.options.text, arguments.options.input)
    experiment = build_experiment(arguments)
    from tljax.assembly.running import predict_records
    from tljax.train.display import Display

    variables, step = chosen_variables(experiment, arguments.workdir, Display().say)
    if step is None and experiment.fresh_head:
        raise UserError("There is nothing to predict with: the head is new; give --workdir of a trained run.")
    lines = predict_records(experiment._replace(variables=variables), records)
    from tljax.base.processes import first

    if not first():
        return 0
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if arguments.options.output:
        _write(Path(arguments.options.output), text)
        return 0
    sys.stdout.write(text)
    if arguments.workdir is not None:
        _write(arguments.workdir / "predictions" / "latest.jsonl", text)
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def gather(texts: list[str], inputs: list[str]) -> list[dict]:
    """Records of the typed texts, then of the files: an image or sound a file, a text or a jsonl object a line."""
    records = [{"id": f"text {i}", "text": text} for i, text in enumerate(texts)]
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise UserError(f"--input={name}: there is no such file or folder.")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            records.extend(_records_of(file))
    if not records:
        raise UserError("Give --text='…', or --input=FILE_OR_FOLDER.")
    return records


def _records_of(file: Path) -> list[dict]:
    suffix = file.suffix.lower()
    if suffix in IMAGES:
        return [{"id": str(file), "image": file.read_bytes()}]
    if suffix in SOUNDS:
        return [{"id": str(file), "audio": file.read_bytes()}]
    if suffix not in (".txt", ".jsonl"):
        known = ", ".join(IMAGES + SOUNDS)
        raise UserError(f"{file}: inputs are .txt (one text a line), .jsonl, images or sounds ({known}).")
    records = []
    for number, line in enumerate(file.read_text(encoding="utf8").splitlines(), 1):
        if not line.strip():
            continue
        record = {"id": f"{file}:{number}", "text": line}
        if suffix == ".jsonl":
            try:
                record = {"id": f"{file}:{number}", **json.loads(line)}
            except (ValueError, TypeError) as error:
                raise UserError(f"{file}:{number} is not a JSON object: {error}") from error
        records.append(record)
    return records
