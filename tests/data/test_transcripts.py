"""Alphabets as transformers' CTC tokenizer reads them, and transcripts as targets."""

import json
from functools import partial

import numpy as np
import pytest

from tljax.base.errors import UserError
from tljax.data.alphabet import Alphabet, alphabet_of, read_alphabet
from tljax.data.audio import AudioProcessor
from tljax.data.transcripts import Transcripts

LETTERS = "abehino'rt"


def _sound(samples: int, text: str | None = None, name: str = "clip") -> dict:
    record = {"id": name, "audio": np.ones(samples, np.float32), "rate": 100}
    return record if text is None else {**record, "target_text": text}


def _frames(stride: int, samples: int) -> int:
    return samples // stride


def _transcripts(**options) -> Transcripts:
    processor = AudioProcessor(sampling_rate=100, max_seconds=1.0, lengths=(0.5,))
    return Transcripts(processor, alphabet_of(LETTERS), partial(_frames, 5), **options)


@pytest.mark.parametrize("lower", [False, True])
def test_a_checkpoint_s_tokenizer_and_ours_agree(lower, tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", *("ABEHIT'" if lower else "abehit'")]
    (tmp_path / "own.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    theirs = Wav2Vec2CTCTokenizer(tmp_path / "own.json", do_lower_case=lower)
    theirs.save_pretrained(tmp_path)
    ours = read_alphabet(tmp_path)
    assert ours.symbols == tuple(symbols)
    assert ours.blank == 1
    text = "hat  bee's"
    wanted = theirs("hat bee's").input_ids
    np.testing.assert_array_equal(ours.encode(text, "it", unknown="map"), wanted)
    assert 3 in wanted  # s
    spelled = [theirs.convert_tokens_to_ids("|" if c == " " else c.upper() if lower else c) for c in "a bee hat"]
    doubled = [i for c in spelled for i in (c, c, ours.blank)]
    assert ours.decode(spelled) == theirs.decode(doubled) == "a bee hat"


def test_a_new_alphabet_is_one_for_transformers(tmp_path):
    from transformers import AutoTokenizer

    processor = AudioProcessor(characters="the bird".replace("d", "n"))
    processor.save(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), processor.alphabet
    assert len(theirs) == len(ours.symbols)
    assert theirs.pad_token_id == ours.blank
    assert theirs("he is in").input_ids == ours.encode("he is in", "it", unknown="map").tolist()
    again = AudioProcessor(tokenizer=str(tmp_path)).alphabet
    assert again == ours
    assert isinstance(again, Alphabet)


def test_targets_are_padded_and_masked():
    made = _transcripts()
    batch = made.collate([made.example(_sound(60, "the bee")), made.example(_sound(40, "a  b"))])
    assert batch["inputs"]["input_values"].shape == (2, 100)
    assert batch["targets"].shape == (2, 16)
    assert made.alphabet.decode(batch["targets"][1][:3]) == "a b"
    assert (batch["targets"][1][3:] == -100).all() and (batch["targets"][0][:7] > 0).all()
    assert "targets" not in made.collate([made.example(_sound(40))])
    with pytest.raises(UserError, match="some have none"):
        made.collate([made.example(_sound(40)), made.example(_sound(40, "a"))])
    assert made._length_for(129) == 256
    shapes = [made.fixed_shape().collate([made.example(_sound(n, "a"))])["targets"].shape for n in (10, 90)]
    assert shapes == [(1, 20), (1, 20)]


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        (_sound(30, "hotel"), {}, "characters 'l'"),
        (_sound(30, "The"), {}, "characters 'T'"),
        (_sound(30, " "), {}, "' ' for its transcript"),
        (_sound(30, 3), {}, "3 for its transcript"),
        (_sound(30, "hear the"), {}, "6 frames, .* 8 characters, 0 of them"),
        (_sound(30, "batteh"), {}, "6 frames, .* 6 characters, 1 of them equal .* needs 7"),
        (_sound(101, "a"), {}, "max_seconds"),
        (_sound(30, "THEE"), {"case": "upper"}, "characters 'EHT'"),
    ],
)
def test_unusable_transcripts_are_named(record, options, message):
    with pytest.raises(UserError, match=f"(?s)'clip'.*{message}"):
        _transcripts(**options).example(record)


def test_letters_and_unknown_characters_can_be_changed():
    made = _transcripts(case="lower", unknown="map")
    labels = made.example(_sound(30, "TREE!"))["labels"]
    assert made.alphabet.decode(labels) == "tree" and labels[-1] == made.alphabet.unknown


def test_unusable_options_are_named(tmp_path):
    with pytest.raises(UserError, match=r"(?s)case is 'Upper'.*unknown is 'skip'"):
        _transcripts(case="Upper", unknown="skip")
    with pytest.raises(UserError, match="too_long is 'truncate'"):
        Transcripts(AudioProcessor(too_long="truncate"), alphabet_of("a"), len)
    with pytest.raises(UserError, match=r"without '\|'"):
        AudioProcessor(characters="ab|")
    with pytest.raises(UserError, match="cannot be loaded"):
        read_alphabet(tmp_path)
