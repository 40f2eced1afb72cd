"""Sound and its transcript, for recognisers that write one character after another."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.tables import suggest
from tljax.data.alphabet import CASES, Alphabet
from tljax.data.audio import AudioProcessor

NO_LABEL = -100
UNKNOWNS = ("error", "map")


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """Records with `audio` and `target_text` → samples and the classes of the transcript's characters.

    A record without `target_text` gives the samples alone.

    Attributes:
      processor: of the sound; its clips are whole (`too_long="error"`), as their transcripts are.
      alphabet: the characters.
      frames: samples → frames that the model gives for them; two workers must be able to load it.
      case, unknown: see `Alphabet.encode`.
      lengths: the numbers of characters that a batch of targets may have; beyond them, multiples of the last.
    """

    makes_targets = True
    processor: AudioProcessor
    alphabet: Alphabet
    frames: Callable[[int], int]
    case: str = "own"
    unknown: str = "error"
    lengths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self):
        faults = [
            f"config.task.{name} is {value!r}. {suggest(value, accepted)}"
            for name, value, accepted in (("case", self.case, CASES), ("unknown", self.unknown, UNKNOWNS))
            if value not in accepted
        ]
        if self.processor.too_long != "error":
            faults.append(
                f"the processor's too_long is {self.processor.too_long!r}, and a part of a clip has no transcript: it "
                "must be 'error', with a greater max_seconds where clips are longer."
            )
        raise_faults("Transcripts cannot be made:", faults)

    def example(self, record: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`input_values` (S,), and `labels` (N,) where the record has a transcript.

        Raises:
          UserError: no sound, a transcript that is no text or empty, characters without a class, or more of them than
            the clip's frames can write: characters, and a blank between each two that are equal.
        """
        found = self.processor.example(record, rng)
        if "target_text" not in record:
            return found
        text, where = record["target_text"], f"The record {record.get('id')!r}"
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where} has {text!r} for its transcript (target_text), and not a text.")
        labels = self.alphabet.encode(text, where, case=self.case, unknown=self.unknown)
        repeats = int(np.sum(labels[1:] == labels[:-1]))
        frames = self.frames(len(found["input_values"]))
        if frames < len(labels) + repeats:
            raise UserError(
                f"{where}: the sound gives {frames} frames, and its transcript {text!r} has {len(labels)} characters, "
                f"{repeats} of them equal to the one before, so it needs {len(labels) + repeats}. Does it belong to "
                "this sound?"
            )
        return {**found, "labels": labels}

    def size_of(self, example: Mapping[str, np.ndarray]) -> int:
        """Samples of an example."""
        return self.processor.size_of(example)

    def collate(self, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """`inputs` as the processor makes them; `targets` int32 (B, N), −100 behind a transcript's end.

        Without transcripts the inputs alone.

        Raises:
          UserError: some of the examples have a transcript and some have none.
        """
        inputs = self.processor.collate(examples)
        labels = [each["labels"] for each in examples if "labels" in each]
        if not labels:
            return {"inputs": inputs}
        if len(labels) < len(examples):
            raise UserError("Some of these records have a target_text and some have none.")
        length = self._length_for(max(map(len, labels)))
        targets = [np.pad(row, (0, length - len(row)), constant_values=NO_LABEL) for row in labels]
        return {"inputs": inputs, "targets": np.stack(targets).astype(np.int32)}

    def fixed_shape(self) -> "Transcripts":
        """With one length of the clips for all batches, and one of the targets: no clip writes more than its frames."""
        return dataclasses.replace(
            self, processor=self.processor.fixed_shape(), lengths=(self.frames(self.processor.limit),)
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the result, for records."""
        own = {"alphabet": "".join(self.alphabet.symbols), "case": self.case, "unknown": self.unknown}
        return {**self.processor.facts, **own}

    def _length_for(self, characters: int) -> int:
        last = self.lengths[-1]
        return min((n for n in self.lengths if characters <= n), default=-(-characters // last) * last)
