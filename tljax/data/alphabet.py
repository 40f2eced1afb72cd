"""Characters as the classes of a speech recogniser: transformers' Wav2Vec2CTCTokenizer, read and written."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tljax.base.errors import UserError

BLANK, UNKNOWN, DELIMITER = "<pad>", "<unk>", "|"
CASES = ("own", "upper", "lower")


class Alphabet(NamedTuple):
    """The classes of a recogniser, one a character.

    Attributes:
      symbols: class → character, or the name of what is none ("<pad>").
      blank: the class of frames that write nothing; transformers' padding token.
      delimiter: the class of the space between words, or None.
      unknown: the class of characters that have none, or None.
      special: the classes that write nothing (blank, start, end, unknown).
      upper: the characters are capitals, and texts have small letters: they are changed on the way in and out.
    """

    symbols: tuple[str, ...]
    blank: int
    delimiter: int | None
    unknown: int | None
    special: frozenset[int]
    upper: bool = False

    def normalized(self, text: str, case: str = "own") -> str:
        """`text` as `decode` would write it: with single spaces, and in the case that is asked for."""
        text = " ".join(text.split())
        if self.upper or case == "lower":
            return text.lower()
        return text.upper() if case == "upper" else text

    def encode(self, text: str, where: str, *, case: str = "own", unknown: str = "error") -> np.ndarray:
        """Classes (N,), int32.

        Args:
          text: of words.
          where: the record, for messages.
          case: "own" leaves the letters as they are, "upper" and "lower" change them first.
          unknown: "error" refuses characters without a class; "map" gives them the class of the unknown.

        Raises:
          UserError: characters without a class.
        """
        text = self.normalized(text, case)
        text = text.upper() if self.upper else text
        classes = {symbol: i for i, symbol in enumerate(self.symbols) if i not in self.special}
        if self.delimiter is not None:
            classes[" "] = self.delimiter
        missing = sorted(set(text) - set(classes))
        if missing and (unknown == "error" or self.unknown is None):
            known = "".join(sorted(symbol for symbol in classes if len(symbol) == 1))
            raise UserError(
                f"{where}: the transcript {text!r} has the characters {''.join(missing)!r}, and the recogniser has no "
                f"classes for them. It knows {known!r}; config.task.case='upper' or 'lower' changes letters first."
            )
        return np.array([classes.get(character, self.unknown) for character in text], np.int32)

    def decode(self, classes: Sequence[int]) -> str:
        """The text of classes from which blanks and repetitions are already gone."""
        spaced = (" " if i == self.delimiter else self.symbols[i] for i in classes if i not in self.special)
        text = " ".join("".join(spaced).split())
        return text.lower() if self.upper else text

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `vocab.json` and `tokenizer_config.json` into `folder`."""
        vocabulary = {symbol: i for i, symbol in enumerate(self.symbols)}
        config = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "pad_token": self.symbols[self.blank],
            "unk_token": None if self.unknown is None else self.symbols[self.unknown],
            "bos_token": None,
            "eos_token": None,
            "word_delimiter_token": None if self.delimiter is None else self.symbols[self.delimiter],
            "do_lower_case": self.upper,
        }
        for name, value in (("vocab.json", vocabulary), ("tokenizer_config.json", config)):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            Path(folder, name).write_text(text + "\n", encoding="utf-8")


def alphabet_of(characters: str) -> Alphabet:
    """An alphabet of these characters and the space, sorted, behind the blank and the unknown.

    Raises:
      UserError: no characters, or the one that stands for the space.
    """
    letters = sorted(set(characters) - set(" \t\n"))
    if not letters or DELIMITER in letters:
        raise UserError(
            f"characters is {characters!r}; it must be the characters of the transcripts, as in "
            f"'abcdefghijklmnopqrstuvwxyz', without {DELIMITER!r}, which stands for the space."
        )
    return Alphabet((BLANK, UNKNOWN, DELIMITER, *letters), 0, 2, 1, frozenset((0, 1)))


def read_alphabet(folder: str | os.PathLike) -> Alphabet:
    """The alphabet of the Wav2Vec2CTCTokenizer in `folder`.

    Raises:
      UserError: the files cannot be read, the tokenizer is of another kind or has no padding token.
    """
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each tokenizer class fails in its own way
        raise UserError(f"The tokenizer in {folder} cannot be loaded: {error}") from error
    if not isinstance(tokenizer, Wav2Vec2CTCTokenizer) or tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer in {folder} is a {type(tokenizer).__name__}; recognition reads the characters of a "
            "Wav2Vec2CTCTokenizer with a padding token, which is its blank."
        )
    names = {i: symbol for symbol, i in tokenizer.get_vocab().items()}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"The classes in {folder}/vocab.json are not numbered from 0 without a gap.")
    delimiter = tokenizer.get_vocab().get(tokenizer.word_delimiter_token)
    marks = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return Alphabet(
        symbols=tuple(names[i] for i in range(len(names))),
        blank=tokenizer.pad_token_id,
        delimiter=delimiter,
        unknown=tokenizer.unk_token_id,
        special=frozenset(i for i in marks if i is not None),
        upper=bool(tokenizer.do_lower_case),
    )
