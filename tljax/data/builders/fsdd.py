"""Free Spoken Digit Dataset: the digits 0 to 9 by six speakers at 8 kHz (Jackson et al. 2018), and strings of them."""

import io
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RATE = 8000
TAKES = {"test": range(5), "validation": range(5, 10), "train": range(10, 50)}
"""Split of the strings → takes of its clips. The publisher's test set is takes 0 to 4, his training set all others."""
PASSES = {"train": 3, "validation": 4, "test": 4}
"""How often each clip is part of a string."""
DIGITS = (1, 3)
"""The least and the most digits of a string."""
PAUSE = (0.02, 0.15)
"""The shortest and the longest silence between two clips, in seconds."""
ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip"
RAW = Raw(
    folder="fsdd",
    wanted=r"(?:.*/)?(\d_[a-z]+_\d+\.(?:flac|wav))",
    urls={"free-spoken-digit-dataset.zip": ADDRESS},
)
CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("words", "digits")]
ABOUT = dict(
    homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
    licence="CC BY-SA 4.0",
    citation="Z. Jackson et al. Jakobovski/free-spoken-digit-dataset. Zenodo, 2018.",
)
SOUND = tfds.features.Text()
"""Encoded bytes: TFDS's own feature of sound stores samples."""


class Clip(NamedTuple):
    """One spoken digit, encoded."""

    digit: int
    speaker: str
    take: int
    name: str
    audio: bytes


def read_clips(files: Mapping[str, bytes]) -> list[Clip]:
    """The 3000 clips, sorted by digit, speaker and take; raises `UserError` where they are others."""
    clips = []
    for name, content in files.items():
        known = name.rpartition(".")[0]
        digit, speaker, take = known.split("_")
        clips.append(Clip(int(digit), speaker, int(take), known, content))
    wanted = len(CLASSES) * len(SPEAKERS) * 50
    speakers = sorted({clip.speaker for clip in clips})
    if len(clips) != wanted or speakers != list(SPEAKERS):
        raise UserError(
            f"FSDD has {wanted} clips by {', '.join(SPEAKERS)}; found {len(clips)} by {', '.join(speakers)}."
        )
    return sorted(clips)


def by_speaker(clips: list[Clip], takes: Mapping[str, range]) -> dict[str, list[Clip]]:
    """Split → clips: of all speakers (`train`), and of one (`train_theo`)."""
    found = {}
    for split, numbers in takes.items():
        found[split] = [clip for clip in clips if clip.take in numbers]
        for speaker in SPEAKERS:
            found[f"{split}_{speaker}"] = [clip for clip in found[split] if clip.speaker == speaker]
    return found


class Fsdd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """2700 training and 300 test clips of one digit; `train_SPEAKER` and `test_SPEAKER` are those of one speaker.

    TFDS adds splits, which is how a speaker is left out: `train_theo+train_lucas`.
    """

    name = "fsdd"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the recordings, or recordings.tar, into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "audio": SOUND,
            "label": tfds.features.ClassLabel(names=CLASSES),
            "speaker": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
        return make_info(self, features=features, description=__doc__, **ABOUT)

    def _split_generators(self, dl_manager):
        takes = {"train": range(5, 50), "test": range(5)}
        clips = read_clips(fetch(RAW, dl_manager))
        return {split: self._generate_examples(part) for split, part in by_speaker(clips, takes).items()}

    def _generate_examples(self, clips: list[Clip]):
        for clip in clips:
            yield clip.name, {"audio": clip.audio, "label": clip.digit, "speaker": clip.speaker, "id": clip.name}


class FsddStrings(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Strings of one to three digits of one speaker, the clips put together with silences between and around them.

    The clips of `train`, `validation` and `test` are different ones, and each is part of several strings. The splits
    of one speaker (`train_theo`) hold the same strings as the whole ones. `target_text` is "three one four" in the
    config `words`, and "3 1 4" in the config `digits`.
    """

    name = "fsdd_strings"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = CONFIGS
    MANUAL_DOWNLOAD_INSTRUCTIONS = Fsdd.MANUAL_DOWNLOAD_INSTRUCTIONS
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("target_text", "speaker", "id")
        features = {"audio": SOUND, **{name: tfds.features.Text() for name in names}}
        return make_info(self, features=features, description=__doc__, **ABOUT)

    def _split_generators(self, dl_manager):
        clips = read_clips(fetch(RAW, dl_manager))
        spoken = {
            f"{split}_{speaker}": list(strings([clip for clip in clips if clip.take in takes], speaker, PASSES[split]))
            for split, takes in TAKES.items()
            for speaker in SPEAKERS
        }
        for split in TAKES:
            spoken[split] = [each for speaker in SPEAKERS for each in spoken[f"{split}_{speaker}"]]
        return {split: self._generate_examples(found) for split, found in spoken.items()}

    def _generate_examples(self, found: list[tuple[str, list[Clip], bytes]]):
        for name, clips, audio in found:
            words = self.builder_config.name == "words"
            text = " ".join(CLASSES[clip.digit] if words else str(clip.digit) for clip in clips)
            yield name, {"audio": audio, "target_text": text, "speaker": clips[0].speaker, "id": name}


def strings(clips: list[Clip], speaker: str, passes: int) -> Iterator[tuple[str, list[Clip], bytes]]:
    """(name, clips, FLAC) of strings of one speaker's clips; in each pass every clip is used once, in another order.

    The draws depend on the speaker, the takes and the pass alone.
    """
    import soundfile

    own = [clip for clip in clips if clip.speaker == speaker]
    samples = {clip.name: soundfile.read(io.BytesIO(clip.audio), dtype="int16")[0] for clip in own}
    for turn in range(passes):
        rng = np.random.default_rng([SPEAKERS.index(speaker), own[0].take, turn])
        order = rng.permutation(len(own))
        while len(order):
            count = min(int(rng.integers(DIGITS[0], DIGITS[1] + 1)), len(order))
            chosen, order = [own[i] for i in order[:count]], order[count:]
            pauses = [np.zeros(int(rng.uniform(*PAUSE) * RATE), np.int16) for _ in range(count + 1)]
            pieces = [part for i, clip in enumerate(chosen) for part in (pauses[i], samples[clip.name])]
            buffer = io.BytesIO()
            soundfile.write(buffer, np.concatenate([*pieces, pauses[-1]]), RATE, format="FLAC", subtype="PCM_16")
            said = "-".join(f"{clip.digit}.{clip.take}" for clip in chosen)
            yield f"{speaker}_{turn}_{said}", chosen, buffer.getvalue()
