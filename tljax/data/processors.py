"""Processors: what turns raw text, images or sound into a model's inputs.

A processor is a frozen dataclass with these members, and the streams know no others:

- `example(record, rng=None)` → dict of arrays of one example; `rng` is given in training, for random changes.
- `opened(record)` → the record, with what its views share done once (an image decoded); else absent.
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
from tljax.data.audio import EXTRACTOR, AudioProcessor, read_extractor
from tljax.data.image_config import options_of
from tljax.data.image_text import ImageTextProcessor
from tljax.data.images import ImageProcessor, read_preprocessor_config
from tljax.data.text import FILES, TextProcessor

Processor = TextProcessor | ImageProcessor | ImageTextProcessor | AudioProcessor

PROCESSORS = {
    "audio": "tljax.data.audio:AudioProcessor",
    "characters": "tljax.data.characters:characters",
    "image": "tljax.data.images:ImageProcessor",
    "image_text": "tljax.data.image_text:image_text",
}
"""Name → processor, for models without a checkpoint and checkpoints without a processor."""

IMAGE_TEXT = ("clip",)
"""The model types that read images and texts."""


def load_processor(folder: str | os.PathLike, config: Mapping[str, Any]) -> Processor | None:
    """The processor that the checkpoint in `folder` carries, or None.

    Args:
      folder: with `preprocessor_config.json` (images, sound) or a tokenizer's files (text). Where there are both, a
        model of images and texts gets a processor of both, any other one that of images or of sound.
      config: the checkpoint's config.json as a dict: `model_type`, `max_position_embeddings`, `vocab_size`.

    Raises:
      UserError: a file of it cannot be read. The tokenizer itself is loaded when it is first used.
    """
    folder = Path(folder)
    has_tokenizer = any((folder / name).is_file() for name in FILES)
    # transformers 5 writes the extractor of a model of sound into the file of the whole processor.
    sound = read_json(folder / "processor_config.json").get("feature_extractor")
    for name, found in (("processor_config.json", sound), ("preprocessor_config.json", None)):
        found = read_json(folder / name) if found is None else found
        if found.get("feature_extractor_type") == EXTRACTOR:
            return read_extractor(found, str(folder / name), str(folder) if has_tokenizer else None)
    # So it does with the images of a model of images and texts.
    nested = read_json(folder / "processor_config.json").get("image_processor")
    if nested is not None or (folder / "preprocessor_config.json").is_file():
        if nested is not None:
            images = ImageProcessor(**options_of(nested, str(folder / "processor_config.json")))
        else:
            images = read_preprocessor_config(folder / "preprocessor_config.json")
        if not has_tokenizer or config.get("model_type") not in IMAGE_TEXT:
            return images
        tower = config.get("text_config_dict") or config.get("text_config") or {}
        return ImageTextProcessor(images, _text_processor(folder, tower))
    if has_tokenizer:
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
