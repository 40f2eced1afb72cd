"""A tokenizer of single characters, for models without a checkpoint: proteins, DNA, spelling."""

import hashlib
import uuid
from pathlib import Path

from tljax.base.errors import raise_faults
from tljax.data.prepare import cache_dir
from tljax.data.text import TextProcessor

PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def characters(
    *, alphabet: str = PROTEIN, max_length: int = 512, lengths: tuple[int, ...] = (), strict: bool = True
) -> TextProcessor:
    """A processor whose tokens are the characters of `alphabet`, between [CLS] and [SEP]; [MASK] is one token.

    The tokens are numbered [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the alphabet in its order; a model needs
    `vocab_size` = 5 + the number of characters. The tokenizer is a file of the tokenizers library in our cache, so that
    an export carries it.

    Args:
      alphabet: each character once.
      max_length: tokens kept of an example, the two special ones included.
      lengths: as of `TextProcessor`.
      strict: refuse characters that are not in the alphabet, by name; otherwise they are [UNK].

    Raises:
      UserError: an empty alphabet, or a character that stands in it twice.
    """
    twice = sorted({c for c in alphabet if alphabet.count(c) > 1})
    raise_faults(
        "The processor characters cannot be made:",
        ["alphabet is empty."] * (not alphabet) + [f"{c!r} stands in the alphabet twice." for c in twice],
    )
    return TextProcessor(str(_folder(alphabet)), max_length, lengths=tuple(lengths), knows_all=strict)


def _folder(alphabet: str) -> Path:
    """The folder of the tokenizer's files, written whole or not at all."""
    folder = cache_dir() / "characters" / hashlib.sha256(alphabet.encode()).hexdigest()[:16]
    if (folder / "tokenizer.json").is_file():
        return folder
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(temporary)
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        if not (folder / "tokenizer.json").is_file():
            raise
    return folder
