"""The generator of training, against arithmetic of NumPy's and against chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tljax.base.randomness import counters, random_bits, training_key


def words(seed: int, count: int) -> np.ndarray:
    return np.asarray(jax.random.bits(training_key(seed), (count,), jnp.uint32))


def lowbias32(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.uint64)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) % 2**32
    return (x ^ (x >> np.uint64(16))).astype(np.uint32)


def test_a_number_is_that_of_its_key_and_place():
    key = training_key(7)
    first, second = np.asarray(jax.random.key_data(key))
    places = np.arange(3 * 4 * 5, dtype=np.uint32)
    wanted = lowbias32(lowbias32(places ^ first) + second).reshape(3, 4, 5)
    np.testing.assert_array_equal(jax.random.bits(key, (3, 4, 5), jnp.uint32), wanted)
    np.testing.assert_array_equal(jax.random.bits(key, (3, 4, 5), jnp.uint8), wanted >> 24)
    np.testing.assert_array_equal(jax.random.bits(key, (3, 4, 5), jnp.uint16), wanted >> 16)
    assert jax.random.bits(key, (), jnp.uint32) == wanted[0, 0, 0]
    with jax.enable_x64(True):
        wide = np.asarray(random_bits(jax.random.key_data(key), 64, (1000,)))
    assert wide.dtype == np.uint64 and len(np.unique(wide >> 32)) == len(np.unique(wide % 2**32)) == 1000
    assert abs(np.corrcoef((wide >> 32).astype(float), (wide % 2**32).astype(float))[0, 1]) < 0.1


def test_an_array_with_more_places_than_a_counter_has_numbers_is_counted_by_groups_of_axes():
    assert len(list(counters((8, 4, 2), most=64))) == 1
    found = np.stack([np.asarray(each).ravel() for each in counters((8, 4, 2), most=63)])
    assert len(found) == 2 and len(np.unique(found, axis=1).T) == 64
    assert found.max() < 63
    whole = [each.shape for each in jax.eval_shape(lambda: list(counters((2**20, 2**10, 2**5))))]
    assert whole == [(2**20, 2**10, 2**5)] * 2


def test_the_numbers_do_not_depend_on_the_mesh_nor_on_jit():
    key = jax.random.fold_in(training_key(1), 5)
    wanted = np.asarray(jax.random.bernoulli(key, 0.3, (8, 12)))
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, -1), ("data", "tensor"))
    for spec in (PartitionSpec("data"), PartitionSpec("data", "tensor"), PartitionSpec()):
        run = jax.jit(lambda key: jax.random.bernoulli(key, 0.3, (8, 12)), out_shardings=NamedSharding(mesh, spec))
        np.testing.assert_array_equal(run(key), wanted)
    keys = jax.random.split(key, 3)
    together = jax.vmap(lambda key: jax.random.bernoulli(key, 0.3, (8, 12)))(keys)
    for one, each in zip(together, keys, strict=True):
        np.testing.assert_array_equal(one, jax.random.bernoulli(each, 0.3, (8, 12)))


COUNT = 2**20


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_pass_for_chance(seed):
    # Each statistic against its distribution, two-sided; a chance of 1e-6 over all of them, for seeds that are fixed.
    found = words(seed, COUNT)
    bits = (found[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    ones = bits.sum(0)
    assert np.abs(ones - COUNT / 2).max() < 5.5 * np.sqrt(COUNT) / 2
    # Neighbours in all pairs of bits, at distances that rows and blocks of an array have.
    for lag in (1, 2, 64, 384, 4096):
        products = (2.0 * bits[lag:].astype(np.float32) - 1).T @ (2.0 * bits[:-lag].astype(np.float32) - 1)
        assert np.abs(products).max() < 6 * np.sqrt(COUNT)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((found >> shift) & 255, minlength=256)
        assert 1e-6 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-6
    # Pairs of neighbours fill a square evenly.
    pairs = (found[::2] >> 26).astype(np.int64) * 64 + (found[1::2] >> 26)
    assert 1e-6 < scipy.stats.chisquare(np.bincount(pairs, minlength=4096)).pvalue < 1 - 1e-6
    uniform = np.asarray(jax.random.uniform(jax.random.fold_in(training_key(seed), 1), (COUNT,)))
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-6
    normal = np.asarray(jax.random.normal(jax.random.fold_in(training_key(seed), 2), (COUNT,)))
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-6


def test_keys_that_are_near_have_nothing_in_common():
    keys = [training_key(0), training_key(1), *jax.random.split(training_key(0), 3)]
    keys += [jax.random.fold_in(training_key(0), step) for step in range(3, 11)]  # of jax, split is fold_in of 0, 1, 2
    rows = np.stack([np.asarray(jax.random.bits(key, (2**16,), jnp.uint32)) for key in keys])
    signs = (
        2.0 * ((rows[..., None] >> np.arange(32, dtype=np.uint32)) & 1).reshape(len(rows), -1).astype(np.float32) - 1
    )
    products = signs @ signs.T
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() < 5 * np.sqrt(signs.shape[1])
    assert len({each.tobytes() for each in rows}) == len(rows)


def test_a_flipped_bit_of_the_place_or_the_key_flips_half_of_the_bits():
    places = np.arange(2**12, dtype=np.uint32)
    key = np.asarray([123456789, 987654321], np.uint32)

    def found(key: np.ndarray, places: np.ndarray) -> np.ndarray:
        return lowbias32(lowbias32(places ^ key[0]) + key[1])

    for bit in range(32):
        one = np.uint32(1) << np.uint32(bit)
        others = [found(key, places ^ one), found(key ^ [one, 0], places), found(key ^ [0, one], places)]
        for other in others:
            flips = ((found(key, places) ^ other)[:, None] >> np.arange(32, dtype=np.uint32)) & 1
            assert abs(flips.mean() - 0.5) < 0.02
            assert np.abs(flips.mean(0) - 0.5).max() < 0.08
