"""Sound: decoding, rates, normalisation and padding as in transformers' feature extractor, sources of sound."""

import io
import json

import numpy as np
import pytest
import soundfile

from tljax.base.errors import UserError
from tljax.data.audio import AudioProcessor
from tljax.data.processors import load_processor
from tljax.data.sources import open_source
from tljax.data.streams import eval_stream


def clip(seconds: float = 0.3, rate: int = 8000, channels: int = 1, kind: str = "WAV", seed: int = 0) -> bytes:
    samples = np.random.default_rng(seed).normal(0.05, 0.2, (int(seconds * rate), channels)).clip(-1, 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("normal", [True, False])
def test_batches_equal_the_feature_extractor_s(normal, tmp_path):
    from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

    theirs = Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=normal, return_attention_mask=True)
    ours = AudioProcessor(sampling_rate=8000, do_normalize=normal, lengths=(), max_seconds=0.5)
    clips = [soundfile.read(io.BytesIO(clip(s, seed=i)), dtype="float32")[0] for i, s in enumerate((0.3, 0.5, 0.11))]
    wanted = theirs(clips, sampling_rate=8000, padding="longest", return_tensors="np")
    found = ours.collate([ours.example({"id": 0, "audio": x, "rate": 8000}) for x in clips])
    np.testing.assert_allclose(found["input_values"], wanted["input_values"], atol=2e-6)
    np.testing.assert_array_equal(found["attention_mask"], wanted["attention_mask"])

    ours.save(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).to_dict() == theirs.to_dict()
    theirs.save_pretrained(tmp_path)
    assert load_processor(tmp_path, {}) == AudioProcessor(sampling_rate=8000, do_normalize=normal)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_kinds_of_files_are_decoded(kind):
    plain = AudioProcessor(sampling_rate=8000, do_normalize=False)
    found = plain.example({"id": "x", "audio": clip(kind=kind)})["input_values"]
    assert found.shape == (2400,)
    if kind != "OGG":
        np.testing.assert_allclose(found, plain.example({"id": "x", "audio": clip()})["input_values"], atol=4e-5)


def test_channels_are_averaged():
    plain = AudioProcessor(sampling_rate=8000, do_normalize=False)
    both = soundfile.read(io.BytesIO(clip(channels=2)), dtype="float32")[0]
    found = plain.example({"id": "x", "audio": clip(channels=2)})["input_values"]
    np.testing.assert_allclose(found, both.mean(axis=1), atol=1e-7)


def test_another_rate_is_an_error_or_resampled():
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    record = {"id": "tone.wav", "audio": tone, "rate": 16000}
    with pytest.raises(UserError, match=r"'tone.wav' has 16000 samples.*reads 8000.*resample=True"):
        AudioProcessor(sampling_rate=8000).example(record)
    found = AudioProcessor(sampling_rate=8000, resample=True, do_normalize=False).example(record)["input_values"]
    np.testing.assert_allclose(found[200:-200], tone[::2][200:-200], atol=2e-3)


def test_long_clips_and_lengths():
    short = AudioProcessor(sampling_rate=8000, max_seconds=0.2, lengths=(0.1, 0.15))
    record = {"id": "long", "audio": clip(0.3)}
    with pytest.raises(UserError, match=r"'long' lasts 0.30 s, and max_seconds.* 0.2"):
        short.example(record)
    cut = short.replace(too_long="truncate").example(record)["input_values"]
    assert len(cut) == 1600
    crop = short.replace(too_long="crop", do_normalize=False)
    whole = short.replace(max_seconds=1.0, do_normalize=False).example(record)["input_values"]
    start = np.random.default_rng(3).integers(0, 801)
    np.testing.assert_array_equal(crop.example(record, np.random.default_rng(3))["input_values"], whole[start:][:1600])
    np.testing.assert_array_equal(crop.example(record)["input_values"], whole[:1600])
    assert crop.random and not short.random
    assert [short.length_for(n) for n in (1, 800, 801, 1500, 1600)] == [800, 800, 1200, 1600, 1600]
    assert short.fixed_shape().length_for(1) == 1600
    unmasked = short.replace(attention_mask=False, padding_value=-1.0)
    batch = unmasked.collate([{"input_values": np.ones(3, np.float32)}])
    assert list(batch) == ["input_values"] and batch["input_values"][0, 3] == -1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "no sound"}, "holds no sound"),
        ({"audio": clip()[:20]}, "cannot be decoded"),
        ({"audio": b"not a sound"}, "cannot be decoded"),
        ({"audio": np.zeros(8, np.int16), "rate": 16000}, "array of int16"),
        ({"audio": np.zeros(8, np.float32)}, "no `rate`"),
        ({"audio": np.zeros(0, np.float32), "rate": 16000}, "is empty"),
    ],
)
def test_unusable_records_are_named(record, message):
    with pytest.raises(UserError, match=f"'bad'.*{message}"):
        AudioProcessor().example({"id": "bad", **record})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate is 0"),
        ({"max_seconds": -1}, "max_seconds is -1"),
        ({"too_long": "crops"}, "'crop'"),
        ({"lengths": [0]}, "lengths is"),
        ({"tokenizer": "x"}, "tokenizer is not one"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        AudioProcessor().replace(**options)


def test_a_feature_extractor_of_another_kind_is_refused(tmp_path):
    config = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 80, "padding_side": "left"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"(?s)feature_size is 80.*padding_side is 'left'"):
        load_processor(tmp_path, {})


def test_a_processor_in_the_file_of_transformers_5(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "A": 3}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", bos_token=None, eos_token=None)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False), tokenizer).save_pretrained(tmp_path)
    found = load_processor(tmp_path, {})
    assert not found.do_normalize and not found.attention_mask
    assert found.alphabet.symbols == ("<pad>", "<unk>", "|", "A")
    found.save(tmp_path / "again")
    assert load_processor(tmp_path / "again", {}).alphabet == found.alphabet


def test_folders_and_tables_of_sounds(tmp_path):
    for name in ("train/no/a.wav", "train/yes/b.WAV", "test/yes/c.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(clip(kind=name[-3:].upper().replace("LAC", "FLAC")))
    source = open_source(f"audio_folder:{tmp_path}")
    assert source.classes == ("no", "yes")
    assert source.records[1] == {"id": "train/yes/b.WAV", "label": 1, "audio": clip()}
    assert len(open_source(f"audio_folder:{tmp_path}", split="test").records) == 1
    with pytest.raises(UserError, match="holds no sounds"):
        open_source(f"audio_folder:{tmp_path / 'train' / 'no'}")
    batch = next(eval_stream(source, AudioProcessor(sampling_rate=8000, lengths=(0.4,)), batch_size=2))
    assert batch["inputs"]["attention_mask"].sum(axis=1).tolist() == [2400, 2400]
    assert batch["inputs"]["input_values"].shape == (2, 3200)
    assert batch["targets"].tolist() == [0, 1]

    (tmp_path / "all.csv").write_text("file,said\ntrain/no/a.wav,no no\n")
    record = open_source(f"csv:{tmp_path / 'all.csv'}", columns={"audio": "file", "target_text": "said"}).records[0]
    assert record == {"id": "train/no/a.wav", "audio": clip(), "target_text": "no no"}
