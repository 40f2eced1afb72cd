"""A tokenizer of whole words, for files of word vectors."""

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path

from tljax.data.prepare import cache_dir
from tljax.data.text import TextProcessor

UNKNOWN, PADDING = "[UNK]", "[PAD]"


def word_processor(words: Sequence[str]) -> TextProcessor:
    """Text is cut at white space and around punctuation; a word's token is its place in `words`.

    A word that is not there has the token V, padding V + 1: the model gives both no part in a mean. Text is put into
    lower case where no word of the vocabulary has a capital letter. Of a word that stands twice the first place counts.
    """
    return TextProcessor(folder=str(_folder(tuple(words))), max_length=512)


def _folder(words: tuple[str, ...]) -> Path:
    """The folder of the tokenizer's files in our cache, written whole or not at all."""
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    folder = cache_dir() / "words" / digest
    if (folder / "tokenizer.json").is_file():
        return folder
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary: dict[str, int] = {}
    for place, word in enumerate(words):
        vocabulary.setdefault(word, place)
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, UNKNOWN: len(words), PADDING: len(words) + 1}, UNKNOWN))
    if not any(word != word.lower() for word in words):
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    temporary = folder.with_name(f"{digest}.{uuid.uuid4().hex[:8]}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PADDING).save_pretrained(temporary)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        if not (folder / "tokenizer.json").is_file():
            raise
    return folder
