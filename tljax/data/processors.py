"""Processors: what turns raw text or images into a model's inputs.

A processor is a frozen dataclass with these members, and the streams know no others:

- `example(record, rng=None)` → dict of arrays of one example; `rng` is given in training, for random changes.
- `collate(examples)` → the batch's `inputs`, under Hugging Face's names.
- `size_of(example)` → how long an example is, where batches of similar examples waste less padding; else absent.
- `fixed_shape()` → the same with one shape for all batches.
- `replace(**options)` → the same with other options; `UserError` for unknown ones.
- `save(folder)` → what the reference library reads back.
- `facts` → what decides the result, for records.
- `makes_targets`: where it is True, `collate` returns the batch's `inputs` and `targets` (an array or a dict of arrays;
  absent for records without labels), and the streams do not read the record's `label`.
- `random`: where it is True, `example` gets an `rng` in training, as it does where `augment` is set.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax.base.errors import UserError
from tljax.data.images import ImageProcessor, read_preprocessor_config
from tljax.data.text import FILES, TextProcessor

Processor = TextProcessor | ImageProcessor

PROCESSORS = {
    "image": "tljax.data.images:ImageProcessor",
}
"""Name → processor, for models without a checkpoint and checkpoints without a processor."""


def load_processor(folder: str | os.PathLike, config: Mapping[str, Any]) -> Processor | None:
    """The processor that the checkpoint in `folder` carries, or None.

    Args:
      folder: with `preprocessor_config.json` (images) or a tokenizer's files (text). Images win where there are both.
      config: the checkpoint's config.json as a dict: `max_position_embeddings`, `vocab_size`.

    Raises:
      UserError: a file of it cannot be read. The tokenizer itself is loaded when it is first used.
    """
    folder = Path(folder)
    if (folder / "preprocessor_config.json").is_file():
        return read_preprocessor_config(folder / "preprocessor_config.json")
    if any((folder / name).is_file() for name in FILES):
        return _text_processor(folder, config)
    return None


def _text_processor(folder: Path, config: Mapping[str, Any]) -> TextProcessor:
    own = read_json(folder / "tokenizer_config.json").get("model_max_length")
    # sentence-transformers keeps the length that the checkpoint was trained for beside the tokenizer.
    trained = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = config.get("max_position_embeddings")
    # A tokenizer without a limit says 1e30.
    known = [int(n) for n in (own, trained, positions) if isinstance(n, (int, float)) and 0 < n < 1e9]
    return TextProcessor(
        folder=str(folder),
        max_length=min(known, default=512),
        positions=positions,
        vocabulary=config.get("vocab_size"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value
