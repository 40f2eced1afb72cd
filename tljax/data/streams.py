"""Streams of NumPy batches: training without end, in an order that seed and step alone decide; evaluation once, whole.

A batch is a dict: `inputs` (Hugging Face's names), `targets` (int32 (B,), float32 (B,), or float32 (B, Y) for several
classes an example, or what a processor makes that makes targets itself; absent without labels), `weight` float32 (B,):
0 for padding, else 1 or the class's weight; `index` int32 (B,): the position in the source, −1 for padding; `views`
{name: inputs}, in place of `inputs` where they are asked for: random views of the same examples; `episode` int32 (B,):
the number of the example's episode, where the stream gives episodes.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Source
from tljax.data.episodes import EpisodeBatches, Episodes
from tljax.data.processors import Processor
from tljax.data.records import read_many
from tljax.data.workers import read_by_workers

WINDOW = 64
"""Batches that are sorted by length together: more save padding, and keep more examples in memory."""
Shard = tuple[int | Sequence[int], int]
"""(the part of every batch that this process reads, or several of them in ascending order; the equal consecutive parts
that a batch is cut into). (0, 1) is the whole batch."""
THREADS = 4
ENDLESS = 2**48
"""Examples of a training stream."""
AHEAD = 4
"""Batches that are prepared ahead of their use."""


def train_stream(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    workers: int = 0,
    augment: Mapping[str, Any] | None = None,
    views: Mapping[str, Mapping[str, Any]] | None = None,
    versions: int | None = None,
    class_weights: np.ndarray | None = None,
    episodes: Episodes | None = None,
    group_by_length: bool = False,
    shard: Shard = (0, 1),
) -> Iterator[dict[str, Any]]:
    """Batches without end; each epoch is shuffled anew. The last batch of an epoch is filled up from the next one.

    Step n's batch is a function of seed and n: not of `start`, `workers`, or what was read before; and the batches
    of all shards, put together in order, are that of one process.

    Args:
      source: with at least one record.
      processor: see `tljax.data.processors`.
      batch_size: examples a step, over all shards.
      seed: of order and augmentation.
      start: the first step to give.
      workers: processes that prepare batches; 0 prepares them in threads of this one.
      augment: the processor's options of augmentation, such as those of `tljax.data.images.Augment`.
      views: name → such options, for random views of each example. They take the place of its `inputs`, which are then
        not made; `augment` changes nothing.
      versions: so many random versions of each example come in turn, one an epoch, again and again; None draws every
        one anew. Without `augment` the records hold them: version v of record i at v · (number of records) + i.
      class_weights: (Y,), the weight of each class.
      episodes: the batches are whole episodes of this shape, drawn anew at each step; there are no epochs then. The
        order in an episode is class by class, its shots, then its queries.
      group_by_length: whether examples of similar length come together, to save padding: those of 64 batches (of an
        epoch, where that has fewer) are sorted, cut into batches, and these given in a random order.
      shard: see `Shard`. Where there are several parts, all batches have one shape.

    Raises:
      UserError: wrong numbers, random changes that the processor does not know, records that it cannot read; for
        episodes, records without classes, too few classes or too few examples of one, a batch that is no multiple of
        an episode.
    """
    import grain

    numbers, shards = _check(source, batch_size, shard, start=start, workers=workers, episodes=episodes)
    if group_by_length:
        _check_lengths(source, processor, views, episodes, shards)
    if views and getattr(processor, "makes_targets", False):
        raise UserError(f"{source.name}: this task makes its targets from the inputs, so its examples have no views.")
    plain = processor.fixed_shape() if shards > 1 else processor
    others = {name: _augmented(plain, options, source) for name, options in sorted((views or {}).items())}
    processor = plain if augment is None else _augmented(plain, augment, source)
    read = _Read(source, processor, views=others, class_weights=class_weights, seed=seed, versions=versions)
    read([(0, 0)])  # the tokenizer is loaded here and not by several threads at once
    rows = _rows(batch_size, numbers, shards)
    if episodes is not None:
        draw = EpisodeBatches(source, episodes, batch_size=batch_size, seed=seed, rows=rows)
        chunks = grain.MapDataset.range(ENDLESS // batch_size).map(draw)
    else:
        places = _shuffled_places(len(source.records), seed)
        if group_by_length:
            window = max(1, min(WINDOW, len(source.records) // batch_size))
            batches = _Window(read, _Collate(processor, source), batch_size, seed)
            return _grouped(places.batch(window * batch_size, batch_fn=list).map(batches), window, start, workers)
        if shards == 1:
            chunks = places.batch(batch_size, batch_fn=list)
        else:
            chunks = grain.MapDataset.range(len(places) // batch_size).map(_Places(places, batch_size, rows))
    # Places become examples a batch at a time: reading together is faster, and Grain's steps cost much an element.
    batches = chunks.map(_Batch(read, _Collate(processor, source), episodes.size if episodes else None))
    return _prepared(batches[start:], workers, AHEAD)


def _prepared(steps: Any, workers: int, ahead: int) -> Iterator[Any]:
    """The elements of Grain's data set `steps`, of which so many are made ahead, in threads or in processes."""
    import grain

    stream = steps.to_iter_dataset(grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead))
    if workers:
        stream = read_by_workers(stream, workers, ahead=ahead)
    return iter(stream)


def _grouped(windows: Any, window: int, start: int, workers: int) -> Iterator[dict[str, Any]]:
    """The batches from step `start` on of Grain's data set of `windows`, each a list of so many."""
    stream = _prepared(windows[start // window :], workers, 2)
    return itertools.islice(itertools.chain.from_iterable(stream), start % window, None)


def _shuffled_places(count: int, seed: int) -> Any:
    """Grain's data set of (place in the stream, position of a record): all `count` records, again and again."""
    import grain

    key = int(np.random.SeedSequence(seed).generate_state(1)[0])  # near seeds would give near orders in Grain
    return (
        grain.MapDataset.range(count)
        .shuffle(seed=key)
        .repeat(max(ENDLESS // count, 1))  # Grain's own endless length does not survive every slice
        .map_with_index(_pair)
    )


def _augmented(processor: Processor, options: Mapping[str, Any], source: Source) -> Processor:
    if not hasattr(processor, "replace"):
        raise UserError(
            f"{source.name}: the inputs of this task are made by {type(processor).__name__}, which knows no random "
            "changes. Leave out `augment` and `views`."
        )
    return processor.replace(augment=options)


def eval_stream(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
    version: int = 0,
    shard: Shard = (0, 1),
) -> Iterator[dict[str, Any]]:
    """Every record once; the last batch is padded with rows of weight 0 and index −1.

    With `augment` it is that version of every record which a `train_stream` of this seed has in its epoch `version`.

    Texts of similar length come together, to save padding: `index` tells the order of the source. With several shards
    they keep the order of the source, all batches have one shape, and each shard gets its part of every batch.
    """
    import grain

    numbers, shards = _check(source, batch_size, shard)
    if shards > 1:
        processor = processor.fixed_shape()
    rows, count = _rows(batch_size, numbers, shards), len(source.records)
    chunks = [
        [(version * count + place, position) for place, position in chunk]
        for chunk in _chunks(count, batch_size, rows)
    ]
    processor = processor if augment is None else _augmented(processor, augment, source)
    read = _Read(source, processor, seed=None if augment is None else seed, versions=version + 1)
    read([(0, 0)])
    examples = (
        grain.MapDataset.source(chunks)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD))
    )
    return _eval_batches(iter(examples), _Collate(processor, source), len(rows), sort=shards == 1)


def _eval_batches(chunks: Iterator[list], collate: "_Collate", size: int, *, sort: bool) -> Iterator[dict[str, Any]]:
    """A batch of `size` for each chunk of examples, padded, sorted by length within windows."""
    sort = sort and hasattr(collate.processor, "size_of")
    while window := list(itertools.islice(chunks, WINDOW if sort else 1)):
        if sort:
            flat = [example for chunk in window for example in chunk]
            flat.sort(key=lambda example: collate.processor.size_of(example["inputs"]))
            window = [flat[i : i + size] for i in range(0, len(flat), size)]
        for chunk in window:
            padding = {**chunk[0], "weight": 0.0, "index": -1}
            yield collate([*chunk, *[padding] * (size - len(chunk))])


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Steps after which every record was seen; the last of them may hold records of the next epoch."""
    return math.ceil(len(source.records) / batch_size)


def fingerprint(source: Source, processor: Processor) -> str:
    """A digest of what a stream gives: the source's name, count, classes and some of its records, the processor."""
    count = len(source.records)
    samples = [source.records[i] for i in sorted({0, count // 2, count - 1}) if 0 <= i < count]
    facts = {
        "name": source.name,
        "count": count,
        "classes": source.classes,
        "processor": {type(processor).__name__: processor.facts},
        "samples": [{k: _digest(v) for k, v in sorted(record.items()) if k != "id"} for record in samples],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = (value.shape, value.tobytes())
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


def _pair(place: int, index: int) -> tuple[int, int]:
    return place, index


def _rows(batch_size: int, numbers: Sequence[int], shards: int) -> list[int]:
    """The rows of a batch of which the parts `numbers` of `shards` equal ones consist."""
    size = batch_size // shards
    return [row for number in numbers for row in range(number * size, (number + 1) * size)]


def _chunks(count: int, batch_size: int, rows: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Chunk k: the places and positions of the `rows` of batch k, as far as there are.

    A chunk that would be empty is a row of padding, so that all shards have equally many.
    """
    starts = range(0, count, batch_size)
    return [[(i, i) for i in (start + row for row in rows) if i < count] or [(0, -1)] for start in starts]


class _Places:
    """Number of a step → the places and positions of the `rows` of its batch; the others are not computed."""

    def __init__(self, places: Any, batch_size: int, rows: Sequence[int]):
        self._places, self._batch_size, self._rows = places, batch_size, rows

    def __call__(self, step: int) -> list[tuple[int, int]]:
        return [self._places[step * self._batch_size + row] for row in self._rows]


class _Read:
    """[(place in the stream, position of a record)] → examples; position −1 is padding, with the first record's inputs.

    `seed` switches augmentation on; `views` are processors by name; `versions` is as `train_stream` has it.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        views: Mapping[str, Processor] | None = None,
        class_weights: np.ndarray | None = None,
        seed: int | None = None,
        versions: int | None = None,
    ):
        self._records, self._classes, self._name = source.records, source.classes, source.name
        self._processor = processor
        self._views = views or {}
        random = getattr(processor, "augment", None) is not None or getattr(processor, "random", False)
        self._seed, self._versions = seed if random or self._views else None, versions
        self._held = versions is not None and not random
        self._labelled = not getattr(processor, "makes_targets", False)
        self._weights = None if class_weights is None else np.asarray(class_weights, np.float32)

    def __call__(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        wanted = [self._one(*place) if self._held else max(place[1], 0) for place in places]
        records = read_many(self._records, wanted)
        return [self._example(*place, record) for place, record in zip(places, records, strict=True)]

    def _example(self, place: int, position: int, record: Mapping[str, Any]) -> dict[str, Any]:
        rng = None
        if self._seed is not None:
            drawn = place if self._versions is None else self._one(place, position)
            rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, drawn], np.uint64)))
        target = self._target(record) if self._labelled else None
        weight = float(position >= 0)
        if self._weights is not None:
            if not isinstance(target, int):
                raise UserError(f"{self._name}: class weights need one class a record.")
            weight = float(self._weights[target])
        example = {"target": target, "weight": weight, "index": position}
        if not self._views:
            return {**example, "inputs": self._processor.example(record, rng)}
        if hasattr(self._processor, "opened"):
            record = self._processor.opened(record)
        return {**example, "views": {name: view.example(record, rng) for name, view in self._views.items()}}

    def _one(self, place: int, position: int) -> int:
        """The number of the version that stands at a place of the stream, among all versions of all records."""
        count = len(self._records)
        return place // count % self._versions * count + max(position, 0)

    def _target(self, record: Mapping[str, Any]) -> int | float | list[int] | None:
        """The label as int, float or list of int, after its classes were checked."""
        label = record.get("label")
        if label is None:
            return None
        label = label.tolist() if hasattr(label, "tolist") else label
        if isinstance(label, float):
            return label
        numbers = list(label) if isinstance(label, (list, tuple)) else [label]
        limit = len(self._classes) if self._classes is not None else math.inf
        if any(not isinstance(n, int) or not 0 <= n < limit for n in numbers):
            raise UserError(
                f"{self._name}, record {record.get('id')!r}: the label {label!r} is out of range: there are "
                f"{limit if self._classes is not None else 'no named'} classes, numbered from 0."
            )
        return numbers if isinstance(label, (list, tuple)) else label


class _Batch:
    """Places → a batch; `size` is that of an episode, where the places are those of episodes."""

    def __init__(self, read: _Read, collate: "_Collate", size: int | None):
        self._read, self._collate, self._size = read, collate, size

    def __call__(self, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
        batch = self._collate(self._read(places))
        if self._size is None:
            return batch
        return {**batch, "episode": np.array([place // self._size for place, _ in places], np.int32)}


class _Window:
    """Places → several batches of `size`, each of examples of similar length, in an order drawn by seed and place."""

    def __init__(self, read: _Read, collate: "_Collate", size: int, seed: int):
        self._read, self._collate, self._size, self._seed = read, collate, size, seed

    def __call__(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        size_of = self._collate.processor.size_of
        examples = sorted(self._read(places), key=lambda example: size_of(example["inputs"]))
        batches = [examples[i : i + self._size] for i in range(0, len(examples), self._size)]
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, places[0][0]], np.uint64)))
        return [self._collate(batches[i]) for i in rng.permutation(len(batches))]


class _Collate:
    """Examples → a batch."""

    def __init__(self, processor: Processor, source: Source):
        self.processor, self._classes, self._name = processor, source.classes, source.name

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = {
            **self._made(examples),
            "weight": np.array([x["weight"] for x in examples], np.float32),
            "index": np.array([x["index"] for x in examples], np.int32),
        }
        targets = [x["target"] for x in examples]
        kinds = {type(target) for target in targets}
        if kinds == {type(None)}:
            return batch
        if kinds == {int}:
            return {**batch, "targets": np.array(targets, np.int32)}
        if kinds <= {int, float}:
            return {**batch, "targets": np.array(targets, np.float32)}
        if kinds == {list} and self._classes is not None:
            marked = np.zeros((len(targets), len(self._classes)), np.float32)
            for row, numbers in zip(marked, targets, strict=True):
                row[numbers] = 1
            return {**batch, "targets": marked}
        raise UserError(f"{self._name}: labels of different kinds in one batch, or lists of classes without names.")

    def _made(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`views`, or `inputs` with the targets that the processor makes."""
        collate = self.processor.collate
        if "views" in examples[0]:
            return {"views": {name: collate([x["views"][name] for x in examples]) for name in examples[0]["views"]}}
        collated = collate([x["inputs"] for x in examples])
        return collated if getattr(self.processor, "makes_targets", False) else {"inputs": collated}


def _check(
    source: Source,
    batch_size: int,
    shard: Shard,
    *,
    start: int = 0,
    workers: int = 0,
    episodes: Episodes | None = None,
) -> tuple[tuple[int, ...], int]:
    """(the numbers of the parts that this process reads, parts in all), after everything was checked."""
    this, shards = shard
    numbers, faults = (this,) if isinstance(this, int) else tuple(this), []
    if not len(source.records):
        faults.append(f"{source.name} holds no records.")
    if not isinstance(batch_size, int) or batch_size < 1:
        faults.append(f"batch_size is {batch_size!r}, and must be a whole number above 0.")
    elif not (shards >= 1 and numbers and all(0 <= n < shards for n in numbers)) or batch_size % shards:
        faults.append(f"batch_size {batch_size} cannot be divided into {shards} parts, of which this is {this}.")
    if episodes is not None:
        wrong = episodes.faults()
        faults += wrong
        if not wrong and isinstance(batch_size, int) and batch_size % episodes.size:
            faults.append(
                f"batch_size is {batch_size}, and an episode of {episodes.ways} ways with {episodes.shots} shots and "
                f"{episodes.queries} queries has {episodes.size} examples; a batch holds one or several whole ones."
            )
    for name, value in (("start", start), ("workers", workers)):
        if not isinstance(value, int) or value < 0:
            faults.append(f"{name} is {value!r}, and must be a whole number from 0.")
    raise_faults("The stream cannot be made:", faults)
    return numbers, shards


def _check_lengths(source: Source, processor: Processor, views: Any, episodes: Any, shards: int) -> None:
    faults = []
    if not hasattr(processor, "size_of"):
        faults.append(f"the inputs of {source.name} all have one size.")
    if views:
        faults.append("the views of an example may differ in length.")
    if episodes is not None:
        faults.append("episodes are drawn, and not sorted.")
    if shards > 1:
        faults.append(f"{shards} processes read the data, whose batches all have one length.")
    raise_faults("Examples cannot be grouped by length (group_by_length):", faults)
