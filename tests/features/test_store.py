"""Stores of examples: what goes in comes out, ragged or not; half a store is none."""

import errno
import pickle

import numpy as np
import pytest

from tljax.base.errors import RunError
from tljax.features.reading import Records, StoredProcessor
from tljax.features.store import INDEX, Field, Store, is_whole, write

FIELDS = {
    "hidden": Field((-1, 3), "float32", "float32"),
    "bias": Field((1, -1, -1), "float32", "float32", fill=-9.0),
    "mask": Field((-1,), "int32", "int32"),
    "pooled": Field((2,), "bfloat16", "float32"),
}
LENGTHS = (4, 1, 6, 2)


def example(i):
    generator, n = np.random.default_rng(i), LENGTHS[i]
    return {
        "hidden": generator.normal(size=(n, 3)).astype(np.float32),
        "bias": generator.normal(size=(1, n, n)).astype(np.float32),
        "mask": np.ones(n, np.int32),
        "pooled": generator.normal(size=2).astype(np.float32),
    }


def examples(order=(2, 0, 3, 1)):
    return ((i, LENGTHS[i], example(i)) for i in order)


def test_examples_come_back_whatever_the_order_of_writing(tmp_path):
    store = pickle.loads(pickle.dumps(write(tmp_path / "store", FIELDS, 4, examples())))
    assert len(store) == 4
    np.testing.assert_array_equal(store.lengths, LENGTHS)
    for i in range(4):
        for key, value in example(i).items():
            exact = key != "pooled"
            np.testing.assert_allclose(store[i][key], value, rtol=0 if exact else 2**-8)
            assert store[i][key].dtype == value.dtype
    numbers = sum(n * 3 + n * n + n for n in LENGTHS) * 4 + 4 * 2 * 2
    assert 0 < store.bytes - numbers < 1500, "the numbers, their places and the index"


def test_batches_are_padded_with_what_padding_is(tmp_path):
    store = write(tmp_path / "store", FIELDS, 4, examples())
    processor, records = StoredProcessor(FIELDS, lengths=(3, 5, 8)), Records(store, "abcd", range(4))
    assert records[2]["label"] == "c" and records[3]["id"] == 3
    rows = [processor.example(records[i]) for i in (0, 1)]
    assert [processor.size_of(row) for row in rows] == [4, 1]
    batch = processor.collate(rows)
    assert {key: x.shape for key, x in batch.items()} == {
        "hidden": (2, 5, 3),
        "bias": (2, 1, 5, 5),
        "mask": (2, 5),
        "pooled": (2, 2),
    }
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    assert (batch["bias"][1, 0, 1:] == -9).all() and (batch["hidden"][1, 1:] == 0).all()
    assert processor.fixed_shape().collate(rows)["hidden"].shape == (2, 8, 3)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from list(examples())[:2]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"could not be stored.*No space left.*config\.train\.cache"):
        write(tmp_path / "store", FIELDS, 4, broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="3 examples were given for 4"):
        write(tmp_path / "store", FIELDS, 4, examples((0, 1, 2)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "gone", "no index", "garbled"])
def test_half_a_store_is_none_and_is_written_again(tmp_path, harm):
    folder = tmp_path / "store"
    write(folder, FIELDS, 4, examples())
    assert is_whole(folder)
    if harm == "cut":
        with (folder / "hidden.bin").open("r+b") as file:
            file.truncate(8)
    elif harm == "gone":
        (folder / "mask.bin").unlink()
    elif harm == "no index":
        (folder / INDEX).unlink()
    else:
        (folder / INDEX).write_text("{")
    assert not is_whole(folder)
    store = write(folder, FIELDS, 4, examples())
    np.testing.assert_array_equal(store[2]["hidden"], example(2)["hidden"])


def test_a_whole_store_is_not_written_again(tmp_path):
    write(tmp_path / "store", FIELDS, 4, examples())

    def never():
        raise AssertionError("the examples were asked for")
        yield

    assert len(write(tmp_path / "store", FIELDS, 4, never())) == 4
    assert isinstance(Store(tmp_path / "store"), Store)


def test_of_two_writers_at_a_time_the_slower_one_takes_what_the_other_wrote(tmp_path):
    def overtaken():
        for number, each in enumerate(examples()):
            if number == 2:
                write(tmp_path / "store", FIELDS, 4, examples())
            yield each

    store = write(tmp_path / "store", FIELDS, 4, overtaken())
    np.testing.assert_array_equal(store[2]["hidden"], example(2)["hidden"])
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "nothing else is left behind"
