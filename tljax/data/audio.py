"""Sound → normalised samples, at the checkpoint's own sampling rate."""

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.data.alphabet import Alphabet, alphabet_of, read_alphabet
from tljax.data.options import fixed, replaced
from tljax.data.text import TextProcessor

SUFFIXES = (".wav", ".flac", ".ogg", ".oga")
"""Files that are read as sound."""
TOO_LONG = ("error", "truncate", "crop")
EPSILON = 1e-7
"""Added to the variance before its root, as transformers does it."""
EXTRACTOR = "Wav2Vec2FeatureExtractor"


@dataclasses.dataclass(frozen=True)
class AudioProcessor:
    """Turns `audio` into `input_values` (S,), float32, and batches of them with an `attention_mask`.

    `audio` is encoded bytes (WAV, FLAC, OGG …), or floating samples (S,) or (S, channels) whose `rate` the record
    names. Several channels are averaged. Batches are padded behind, to the smallest of a few lengths, so that a
    compiled function sees few shapes.

    Attributes:
      sampling_rate: samples a second that the model expects.
      resample: sound of another rate is resampled (a polyphase filter) and not refused.
      do_normalize: each clip is shifted and scaled to mean 0 and variance 1, over its own samples.
      attention_mask: batches hold the mask of samples; checkpoints whose feature encoder normalises over a whole clip
        ("group") were trained without one, with zeros as padding.
      padding_value: what stands behind a clip.
      max_seconds: the longest clip.
      too_long: what becomes of longer clips: "error" refuses them; "truncate" keeps their start; "crop" keeps a random
        part in training, and their start in evaluation.
      lengths: the seconds that a batch may have, below `max_seconds`, which is always one of them.
      characters: the characters that transcripts are written in, for a new recogniser; None takes the checkpoint's.
      tokenizer: the folder of the checkpoint's tokenizer of characters, or None.
    """

    sampling_rate: int = 16000
    resample: bool = False
    do_normalize: bool = True
    attention_mask: bool = True
    padding_value: float = 0.0
    max_seconds: float = 30.0
    too_long: str = "error"
    lengths: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    characters: str | None = None
    tokenizer: str | None = fixed(default=None)

    def __post_init__(self):
        faults = []
        if type(self.sampling_rate) is not int or self.sampling_rate < 1:
            faults.append(f"sampling_rate is {self.sampling_rate!r}, and must be a whole number of samples a second.")
        if not _is_number(self.max_seconds) or self.max_seconds <= 0:
            faults.append(f"max_seconds is {self.max_seconds!r}, and must be a number above 0.")
        if self.too_long not in TOO_LONG:
            faults.append(f"too_long is {self.too_long!r}. {suggest(self.too_long, TOO_LONG)}")
        if not all(_is_number(length) and length > 0 for length in self.lengths):
            faults.append(f"lengths is {self.lengths!r}, and must be seconds above 0.")
        if self.characters is not None:
            alphabet_of(self.characters)
        raise_faults("The audio processor cannot be made:", faults)

    def __getstate__(self):
        """Without the alphabet, which every process reads for itself."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @property
    def alphabet(self) -> Alphabet | None:
        """The characters that a recogniser writes; None where neither the checkpoint nor the config names them."""
        return self._alphabet

    @cached_property
    def _alphabet(self) -> Alphabet | None:
        if self.characters is not None:
            return alphabet_of(self.characters)
        return None if self.tokenizer is None else read_alphabet(self.tokenizer)

    @property
    def random(self) -> bool:
        """Whether training examples are drawn."""
        return self.too_long == "crop"

    @property
    def limit(self) -> int:
        """Samples of the longest clip."""
        return math.ceil(self.max_seconds * self.sampling_rate)

    def replace(self, **options: Any) -> "AudioProcessor":
        """With other options; raises `UserError` for unknown ones."""
        return replaced(self, options, what="audio")

    def fixed_shape(self) -> "AudioProcessor":
        """With one length for all batches, as several processes need that fill one global batch."""
        return self.replace(lengths=())

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`input_values` (S,); S is the clip's own length.

        Raises:
          UserError: no sound, one that cannot be decoded, is empty, too long or of another sampling rate.
        """
        samples = self._samples(record)
        if len(samples) > self.limit:
            if self.too_long == "error":
                raise UserError(
                    f"The sound {record.get('id')!r} lasts {len(samples) / self.sampling_rate:.2f} s, and max_seconds "
                    f"of the processor is {self.max_seconds:g}. Raise it, or set too_long='truncate' (or 'crop')."
                )
            draw = self.too_long == "crop" and rng is not None
            start = int(rng.integers(0, len(samples) - self.limit + 1)) if draw else 0
            samples = samples[start : start + self.limit]
        if self.do_normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(EPSILON))
        return {"input_values": samples.astype(np.float32)}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Samples of an example: batches of similar size waste less padding."""
        return len(example["input_values"])

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """`input_values` float32 and, unless switched off, `attention_mask` int32, (B, S)."""
        sizes = [len(x["input_values"]) for x in examples]
        length = self.length_for(max(sizes))
        values = np.full((len(examples), length), self.padding_value, np.float32)
        for row, x in zip(values, examples, strict=True):
            row[: len(x["input_values"])] = x["input_values"]
        if not self.attention_mask:
            return {"input_values": values}
        return {
            "input_values": values,
            "attention_mask": (np.arange(length) < np.array(sizes)[:, None]).astype(np.int32),
        }

    def length_for(self, samples: int) -> int:
        """The smallest of the lengths, in samples, that holds so many."""
        lengths = [math.ceil(seconds * self.sampling_rate) for seconds in (*self.lengths, self.max_seconds)]
        return min(n for n in lengths if samples <= n <= self.limit)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes transformers' `preprocessor_config.json` into `folder`, and the tokenizer's files beside it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {
            "feature_extractor_type": EXTRACTOR,
            "feature_size": 1,
            "sampling_rate": self.sampling_rate,
            "do_normalize": self.do_normalize,
            "return_attention_mask": self.attention_mask,
            "padding_value": self.padding_value,
            "padding_side": "right",
        }
        text = json.dumps(config, indent=2)
        Path(folder, "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
        if self.characters is not None:
            self.alphabet.save(folder)
        elif self.tokenizer is not None:
            TextProcessor(self.tokenizer).save(folder)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        facts = dataclasses.asdict(self)
        return {**facts, "tokenizer": Path(self.tokenizer).name if self.tokenizer else None}

    def _samples(self, record: Mapping[str, Any]) -> np.ndarray:
        """Mono samples (S,) float32 at the model's sampling rate."""
        audio, name = record.get("audio"), f"The sound {record.get('id')!r}"
        if isinstance(audio, bytes):
            samples, rate = decode(audio, name)
        elif isinstance(audio, np.ndarray):
            samples, rate = audio, record.get("rate")
            if not np.issubdtype(audio.dtype, np.floating) or audio.ndim not in (1, 2):
                raise UserError(
                    f"{name} is an array of {audio.dtype} {audio.shape}; it must be floating, within ±1, of (samples,) "
                    "or (samples, channels)."
                )
            if not isinstance(rate, (int, np.integer)) or rate < 1:
                raise UserError(f"{name} is an array, and its record holds no `rate`, in samples a second.")
        else:
            raise UserError(f"The record {record.get('id')!r} holds no sound, and the model reads sound.")
        samples = samples.mean(axis=1) if samples.ndim == 2 else samples
        if not len(samples):
            raise UserError(f"{name} is empty.")
        if rate == self.sampling_rate:
            return samples.astype(np.float32)
        if not self.resample:
            raise UserError(
                f"{name} has {rate} samples a second, and the model reads {self.sampling_rate}. Set the processor's "
                "option resample=True to have it resampled."
            )
        from scipy.signal import resample_poly

        common = math.gcd(int(rate), self.sampling_rate)
        return resample_poly(samples, self.sampling_rate // common, int(rate) // common).astype(np.float32)


def decode(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Encoded sound → (samples (S, channels) float32 within ±1, samples a second); raises `UserError`."""
    import soundfile

    try:
        return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise UserError(f"{name} cannot be decoded: {error} Is it a complete file of WAV, FLAC or OGG?") from error


def read_extractor(config: Mapping[str, Any], where: str, tokenizer: str | None = None) -> AudioProcessor:
    """The processor that a preprocessor_config.json of a Wav2Vec2FeatureExtractor describes.

    Args:
      config: the file, as a dict.
      where: the file, for messages.
      tokenizer: the folder of the checkpoint's tokenizer, or None.

    Raises:
      UserError: settings that tljax does not do: several features a sample, padding in front.
    """
    kept = {"feature_size": 1, "padding_side": "right"}
    raise_faults(
        f"{where} cannot be used:",
        [
            f"{name} is {config[name]!r}; tljax reads {value!r} only."
            for name, value in kept.items()
            if config.get(name, value) != value
        ],
    )
    return AudioProcessor(
        sampling_rate=config.get("sampling_rate", 16000),
        do_normalize=bool(config.get("do_normalize", True)),
        attention_mask=bool(config.get("return_attention_mask", False)),
        padding_value=float(config.get("padding_value", 0.0)),
        tokenizer=tokenizer,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
