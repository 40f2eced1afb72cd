"""Files of word vectors: word2vec's text and binary form, GloVe's text, fastText's text and binary form.

Mikolov et al. 2013, Pennington et al. 2014, Bojanowski et al. 2017. A file gives two tensors: `vectors` (V, D) float32
and `words`, the words in the order of the file as UTF-8, one a line. Nothing is executed, nothing is guessed from the
name: the first bytes tell the form.
"""

import dataclasses
import functools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Model
from tljax.checkpoints.tensors import Format, Tensor
from tljax.data.words import word_processor

FASTTEXT = 793712314
"""The number with which fastText's binary files begin."""
END = "</s>"
"""fastText's end of a sentence, the only word without parts."""
OTHERS = (b"PK", b"\x80", b"\x00\x00", b"{", b"\x93NUMPY", b"\x89HDF")
"""How the files of other formats begin."""
MOST_FAULTS = 10


class Vectors(NamedTuple):
    """Words and their vectors, (V, D) float32."""

    words: list[str]
    vectors: np.ndarray


def open_tensors(path: Path) -> dict[str, Tensor]:
    """{"vectors": (V, D), "words": bytes}; raises `UserError` for a file that is damaged or of no known form."""
    found = read(path)
    words = np.frombuffer("\n".join(found.words).encode(), np.uint8)
    return {
        "vectors": Tensor(found.vectors.shape, found.vectors.dtype, lambda: found.vectors, str(path)),
        "words": Tensor(words.shape, words.dtype, lambda: words, str(path)),
    }


def recognises(path: Path) -> bool:
    """Whether the first bytes are those of a file of word vectors."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start[:4] == struct.pack("<i", FASTTEXT):
        return True
    if start.startswith(OTHERS):
        return False
    line = start.split(b"\n", 1)[0].split()
    if len(line) == 2:
        return all(field.isdigit() for field in line)
    return len(line) > 2 and _is_number(line[-1]) and _is_number(line[-2])


def read(path: Path) -> Vectors:
    """The words and vectors of a file.

    Raises:
      UserError: lines of different lengths, what is no number, a file that ends too early, quantised vectors.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == struct.pack("<i", FASTTEXT):
            return _read_fasttext(path, file)
        header = file.readline().split()
        if len(header) != 2 or not all(field.isdigit() for field in header):
            file.seek(0)
            return _read_text(path, file, None, None)
        count, width = map(int, header)
        place = file.tell()
        line = file.readline()
        file.seek(place)
        if len(line.split(b" ")) > width and _is_text(line):
            return _read_text(path, file, count, width)
        return _read_binary(path, file, count, width)


def write(path: Path, words: list[str], vectors: np.ndarray) -> None:
    """Writes word2vec's binary form, which keeps every bit."""
    with path.open("wb") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        for word, vector in zip(words, vectors.astype("<f4", copy=False), strict=True):
            file.write(word.encode() + b" " + vector.tobytes() + b"\n")


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _is_text(line: bytes) -> bool:
    fields = line.split()
    return len(fields) > 1 and all(map(_is_number, fields[-2:]))


def _read_text(path: Path, file: BinaryIO, count: int | None, width: int | None) -> Vectors:
    """One word a line, then its numbers. A word may hold spaces; the numbers are the last `width` fields."""
    words, rows, faults = [], [], []
    for number, line in enumerate(file, 1 if count is None else 2):
        fields = line.rstrip(b" \r\n").split(b" ")
        if fields == [b""]:
            continue
        width = len(fields) - 1 if width is None else width
        try:
            row = np.array(fields[len(fields) - width :], np.float32)
            if len(fields) <= width:
                raise ValueError(f"{len(fields) - 1} numbers, and not {width}")
            rows.append(row)
            words.append(b" ".join(fields[: len(fields) - width]).decode("utf-8"))
        except ValueError as error:
            faults.append(f"line {number}: {error}.")
    if count is not None and len(rows) != count and not faults:
        faults.append(f"the first line speaks of {count} words, and there are {len(rows)}.")
    more = [f"and {len(faults) - MOST_FAULTS} more."] if len(faults) > MOST_FAULTS else []
    raise_faults(f"{path} cannot be read as word vectors:", [*faults[:MOST_FAULTS], *more])
    if not rows:
        raise UserError(f"{path} holds no word vectors.")
    return Vectors(words, np.stack(rows))


def _read_binary(path: Path, file: BinaryIO, count: int, width: int) -> Vectors:
    """A word, a space, `width` float32 in little endian; a line break before the next word, or none."""
    content, place, size = file.read(), 0, 4 * width
    words, vectors = [], np.empty((count, width), np.float32)
    for i in range(count):
        end = content.find(b" ", place)
        if end < 0 or end + 1 + size > len(content):
            raise UserError(f"{path} ends in word {i + 1} of {count}: it is damaged or not word2vec's binary form.")
        try:
            words.append(content[place:end].lstrip(b"\n").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: word {i + 1} is not UTF-8: {error}.") from error
        vectors[i] = np.frombuffer(content, "<f4", width, end + 1)
        place = end + 1 + size
    return Vectors(words, vectors)


def _read_fasttext(path: Path, file: BinaryIO) -> Vectors:
    """The words of fastText's dictionary; each vector is the mean of the word's own and those of its parts."""

    def take(form: str) -> tuple:
        size = struct.calcsize(f"<{form}")
        content = file.read(size)
        if len(content) < size:
            raise UserError(f"{path} ends too early: it is damaged.")
        return struct.unpack(f"<{form}", content)

    _, version = take("ii")
    if version != 12:
        raise UserError(f"{path} has version {version} of fastText's format; only 12 is read.")
    options = take("12id")
    width, bucket, shortest, longest = options[0], options[8], options[9], options[10]
    size, count, _, _, pruned = take("iiiqq")
    words = []
    for _ in range(size):
        word = b"".join(iter(lambda: take("s")[0], b"\0"))
        _, kind = take("qb")
        if kind == 0:
            words.append(word.decode("utf-8", "replace"))
    if pruned > 0 or take("?")[0]:
        raise UserError(f"{path} is quantised (.ftz); only the full .bin is read.")
    rows, columns = take("qq")
    content = file.read(4 * rows * columns)
    if len(content) != 4 * rows * columns or columns != width or rows < count:
        raise UserError(f"{path} ends too early, or its sizes do not agree: it is damaged.")
    matrix = np.frombuffer(content, "<f4").reshape(rows, columns)
    vectors = np.empty((len(words), width), np.float32)
    for i, word in enumerate(words):
        parts = [] if word == END else [count + number for number in _parts(word, bucket, shortest, longest)]
        vectors[i] = matrix[[i, *parts]].mean(axis=0)
    return Vectors(words, vectors)


def _parts(word: str, bucket: int, shortest: int, longest: int) -> Iterator[int]:
    """The numbers of the character n-grams of `<word>`, as fastText hashes them."""
    if not bucket or not longest:
        return
    marked = f"<{word}>"
    for start in range(len(marked)):
        for stop in range(start + shortest, min(start + longest, len(marked)) + 1):
            if stop - start > 1 or not (start == 0 or stop == len(marked)):
                yield _hash(marked[start:stop]) % bucket


@functools.lru_cache(maxsize=1 << 20)
def _hash(part: str) -> int:
    """FNV-1a over signed bytes."""
    number = 2166136261
    for byte in part.encode():
        number ^= byte if byte < 128 else byte | 0xFFFFFF00
        number = (number * 16777619) & 0xFFFFFFFF
    return number


def describe(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entries of config.json that a file of word vectors stands for."""
    words, width = tensors["vectors"].shape
    return {"model_type": "word_vectors", "words": words, "hidden_size": width}


def make_processor(path: Path, tensors: Mapping[str, Tensor], found: Any) -> Any:
    """The file's own words, whatever tokenizer stands beside it."""
    return word_processor(bytes(tensors["words"].read()).decode().split("\n"))


def writer(model: Model, variables: Mapping[str, Any], classes: Sequence[str] | None) -> Callable[[Path], None]:
    """Writes `vectors.bin` in word2vec's binary form, and config.json.

    Raises:
      UserError: vectors that were not read from a file, or a head with parameters.
    """
    if jax.tree.leaves(variables["params"].get("head", {})):
        raise UserError("No library has a class for a head on word vectors; save the vectors alone (head=None).")
    words = variables["extras"].get("words")
    if words is None:
        raise UserError("These word vectors have no words: they were not read from a file, and cannot be written.")
    table = np.asarray(variables["params"]["backbone"]["embed"]["embedding"], np.float32)
    entries = {"model_type": model.family, **dataclasses.asdict(model.config)}

    def run(folder: Path) -> None:
        write(folder / "vectors.bin", bytes(words).decode().split("\n"), table)
        (folder / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf8")

    return run


FORMAT = Format(open_tensors, describe, make_processor, writer)
