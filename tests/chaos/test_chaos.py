"""A handful of kills in `make test`; every one of them, and the whole fuzz of checkpoints, in `make test-all`."""

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.chaos.__main__ import cases
from tests.chaos.damage import fuzz
from tests.chaos.faults import Fault
from tests.chaos.harness import Harness
from tests.chaos.scenarios import prepare

# Where a read fails, Orbax drops its other coroutines, and Python notes that nobody awaited them.
dropped = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HANDFUL = (
    ("fine-tuning", (Fault("a step", 7), Fault("after a restore"), Fault("saving", 2, 0.01))),
    ("stage cache", (Fault("writing a cache", 20), Fault("half a record", 4))),
    ("fine-tuning", (Fault("an evaluation", 1, what="SIGTERM"), Fault("writing a record", 4, what="full disk"))),
)
ALL = cases(seed=0)


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    prepare(folder)
    return Harness(folder)


def assert_bit_equal(outcome):
    assert outcome.died, f"not every process ended where and as it should: {outcome.faults}"
    assert outcome.lost == ()


@pytest.mark.parametrize(("number", "scenario", "faults"), [(i, *case) for i, case in enumerate(HANDFUL)])
def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(harness, number, scenario, faults):
    assert_bit_equal(harness.case(scenario, faults, f"handful{number}"))


@pytest.mark.long
@pytest.mark.parametrize(("number", "scenario", "faults"), [(i, *case) for i, case in enumerate(ALL)])
def test_every_fault(harness, number, scenario, faults):
    assert_bit_equal(harness.case(scenario, faults, number))


def test_enough_faults_are_in_the_table():
    assert sum(len(faults) for _, faults in ALL) >= 40
    assert {fault.point for _, faults in ALL for fault in faults} >= {"", "tracing", "saving", "before a commit"}


@dropped
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("bit", 12),
        ("cut", 12),
        pytest.param("bit", 200, marks=pytest.mark.long),
        pytest.param("cut", 50, marks=pytest.mark.long),
    ],
)
def test_damaged_checkpoints_are_never_restored_silently_wrong(tmp_path, kind, count):
    outcomes = fuzz(tmp_path, count, kind, seed=count)
    assert sum(outcomes.values()) == count
    # Orbax names its files at random, so that the same seed damages other places each time.
    assert "SILENTLY WRONG" not in outcomes and outcomes["step before"] > (count / 3 if count >= 50 else 0)


@dropped
def test_so_are_sharded_ones(tmp_path):
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def place(x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp") if x.ndim else PartitionSpec()))

    outcomes = fuzz(tmp_path, 8, "bit", seed=1, place=place)
    assert "SILENTLY WRONG" not in outcomes and outcomes["step before"] > 0
