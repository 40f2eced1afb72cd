"""The run's own checkpoints: bit-equal or not at all, the step before where one is damaged, the best one kept."""

import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tljax.base.errors import RunError, UserError
from tljax.checkpoints.digest import _digest
from tljax.checkpoints.run import RunCheckpoints

# Where a read or a write fails, Orbax drops its other coroutines, and Python notes that nobody awaited them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(seed: int = 0, *, live: tuple[str, ...] = ("backbone/block0/kernel", "head/out/kernel")) -> dict:
    """Every dtype and container that a run's state may hold."""
    keys = jax.random.split(jax.random.key(seed), 8)
    leaves = {path: jax.random.normal(keys[i], (24, 16)) for i, path in enumerate(live)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), dict.fromkeys(live, True)))
    return {
        "live": leaves,
        "optimizer": optimizer.init(leaves),
        "batch_stats": {"backbone": {"norm": {"mean": jax.random.normal(keys[3], (16,))}}},
        "method": {
            "half": jax.random.normal(keys[4], (5, 3), jnp.bfloat16),
            "count": jnp.int32(7 + seed),
            "key": jax.random.key_data(keys[5]),
            "flags": jnp.array([True, False, True]),
            "codes": jnp.arange(9, dtype=jnp.int8),
            "none": jnp.zeros((0, 4)),
            "nothing": None,
            "empty": {},
            "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        },
    }


def template(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    opened = RunCheckpoints(tmp_path / "checkpoints", keep_last=3, say=said.append)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with the steps 1 and 2, to be copied by tests that damage it."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    opened = RunCheckpoints(folder)
    for step in (1, 2):
        opened.save(step, make_state(step), {"step": step})
    opened.close()
    return folder


def data_files(folder: Path, step: int) -> list[Path]:
    """The files with arrays in them, the largest first."""
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def test_what_is_restored_has_the_bits_and_the_meta_that_were_saved(checkpoints, said):
    state = make_state()
    meta = {"step": 3, "best": {"value": 0.1 + 0.2, "numbers": {}}, "offset": 2**40, "digests": {"live": "ab"}}
    checkpoints.save(3, state, meta)
    restored, back = checkpoints.restore(template(state))
    assert_same_bits(restored, state)
    assert back == meta
    assert said == []


def test_an_empty_folder_has_no_steps(checkpoints):
    assert checkpoints.steps() == []
    assert not checkpoints.has_best()
    assert not checkpoints.folder.exists()
    with pytest.raises(RunError, match="There is no checkpoint"):
        checkpoints.restore(template(make_state()))


def test_arrays_may_be_donated_or_changed_right_after_save(checkpoints):
    state = {"live": {"w": jnp.arange(2**20, dtype=jnp.float32)}, "host": np.arange(2**20)}
    expected = jax.tree.map(np.array, state)
    step = jax.jit(lambda w: w * 2 + 1, donate_argnums=0)
    checkpoints.save(1, state, {})
    state["live"]["w"] = step(state["live"]["w"])
    state["host"][:] = -1
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x).dtype), expected)
    restored, _ = checkpoints.restore(shapes)
    np.testing.assert_array_equal(restored["live"]["w"], expected["live"]["w"])
    np.testing.assert_array_equal(restored["host"], expected["host"])


@pytest.mark.parametrize("place", range(12))
def test_a_flipped_bit_is_never_restored_silently(written, tmp_path, said, place):
    folder = shutil.copytree(written, tmp_path / "checkpoints")
    files = [path for path in data_files(folder, 2) if path.stat().st_size]
    path = files[0] if place < 8 else files[place - 7]
    content = bytearray(path.read_bytes())
    position = int(np.random.default_rng(place).integers(len(content)))
    content[position] ^= 1 << (place % 8)
    path.write_bytes(content)
    checkpoints = RunCheckpoints(folder, say=said.append)
    restored, meta = checkpoints.restore(template(make_state()))
    checkpoints.close()
    # A bit that nobody reads (padding, a copy of the metadata) may leave the step intact; it is then bit-equal.
    assert_same_bits(restored, make_state(meta["step"]))
    if meta["step"] == 1:
        assert len(said) == 1 and "step 2 is damaged" in said[0]
        assert (folder / "quarantine" / "2").is_dir()
        assert checkpoints.steps() == [1]


def test_a_changed_weight_is_found_and_the_step_before_is_used(written, tmp_path, said):
    folder = shutil.copytree(written, tmp_path / "checkpoints")
    weights = np.asarray(make_state(2)["live"]["head/out/kernel"]).tobytes()
    hits = [path for path in data_files(folder, 2) if weights[:64] in path.read_bytes()]
    assert hits
    for path in hits:
        content = path.read_bytes()
        path.write_bytes(content.replace(weights[:4], bytes([weights[0] ^ 1]) + weights[1:4]))
    checkpoints = RunCheckpoints(folder, say=said.append)
    restored, meta = checkpoints.restore(template(make_state()))
    checkpoints.close()
    assert meta == {"step": 1}
    assert_same_bits(restored, make_state(1))
    assert "live/head/out/kernel" in said[0] and "quarantine" in said[0]


@pytest.mark.parametrize(
    "damage", ["truncated", "empty file", "missing file", "lost leaf", "record", "no record", "empty step"]
)
def test_other_damage_falls_back_too(written, tmp_path, said, damage):
    folder = shutil.copytree(written, tmp_path / "checkpoints")
    path, record = data_files(folder, 2)[0], folder / "2" / "record" / "metadata"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty file":
        path.write_bytes(b"")
    elif damage == "missing file":
        path.unlink()
    elif damage == "lost leaf":
        metadata = folder / "2" / "state" / "_METADATA"
        metadata.write_text(metadata.read_text().replace("method/half", "method/hale"))
    elif damage == "record":
        text = record.read_text()
        changed = text.replace('"step": 2', '"step": 3')
        assert changed != text
        record.write_text(changed)
    elif damage == "no record":
        shutil.rmtree(record.parent)
    else:
        shutil.rmtree(folder / "2")
        (folder / "2").mkdir()
    checkpoints = RunCheckpoints(folder, say=said.append)
    assert checkpoints.steps() == ([1] if damage in ("record", "no record", "empty step") else [1, 2])
    restored, meta = checkpoints.restore(template(make_state()))
    assert meta == {"step": 1}
    assert_same_bits(restored, make_state(1))
    assert len(said) == 1 and "step 2 is damaged" in said[0] and "quarantine" in said[0]
    checkpoints.save(2, make_state(2), {"step": 2})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]


def test_nothing_intact_is_an_error_and_everything_is_still_there(written, tmp_path, said):
    folder = shutil.copytree(written, tmp_path / "checkpoints")
    for step in (1, 2):
        data_files(folder, step)[0].write_bytes(b"")
    checkpoints = RunCheckpoints(folder, say=said.append)
    with pytest.raises(RunError, match="2 damaged"):
        checkpoints.restore(template(make_state()))
    checkpoints.close()
    assert sorted(path.name for path in (folder / "quarantine").iterdir()) == ["1", "2"]


def test_other_leaves_are_refused_by_name_and_nothing_is_moved(written):
    checkpoints = RunCheckpoints(written)
    other = template(make_state(live=("backbone/block1/kernel", "head/out/kernel")))
    other["batch_stats"]["backbone"]["norm"]["mean"] = jax.ShapeDtypeStruct((17,), jnp.float32)
    other["method"]["half"] = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(other)
    checkpoints.close()
    message = str(caught.value)
    for line in (
        "3 missing from the checkpoint",
        "live/backbone/block1/kernel",
        "3 only in the checkpoint",
        "live/backbone/block0/kernel",
        "2 of another shape or type",
        "batch_stats/backbone/norm/mean (float32[16] there, float32[17] here)",
        "method/half (bfloat16[5, 3] there, float32[5, 3] here)",
    ):
        assert line in message
    assert checkpoints.steps() == [1, 2]


def test_the_newest_steps_and_their_best_are_kept(tmp_path):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep_last=2)
    shape = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    for step in range(1, 9):
        save = checkpoints.save_best if step in (2, 3, 5) else checkpoints.save
        save(step, {"w": jnp.full(4, step, jnp.float32)}, {"step": step})
    checkpoints.wait()
    assert checkpoints.steps() == [5, 7, 8]
    assert checkpoints.has_best()
    restored, meta = checkpoints.restore(shape, step="best")
    assert meta == {"step": 5}
    np.testing.assert_array_equal(restored["w"], np.full(4, 5))
    assert checkpoints.restore(shape)[1] == {"step": 8}
    checkpoints.save_best(9, {"w": jnp.full(4, 9.0)}, {"step": 9})
    checkpoints.wait()
    # Step 8 may be needed when 9 is damaged, and the best up to it was 5.
    assert checkpoints.steps() == [5, 8, 9]
    assert checkpoints.restore(shape, step="best")[1] == {"step": 9}
    shutil.rmtree(checkpoints.folder / "9" / "state")
    assert checkpoints.restore(shape, step="best")[1] == {"step": 5}
    checkpoints.close()


def test_saving_the_same_step_again_writes_nothing_and_keeps_the_mark(checkpoints):
    state = make_state()
    checkpoints.save_best(4, state, {"step": 4})
    checkpoints.wait()
    record = checkpoints.folder / "4" / "record" / "metadata"
    before = record.stat().st_mtime_ns
    checkpoints.save(4, state, {"step": 4})
    checkpoints.wait()
    assert record.stat().st_mtime_ns == before
    checkpoints.save(4, make_state(1), {"step": 4})
    restored, _ = checkpoints.restore(template(state), step="best")
    assert_same_bits(restored, make_state(1))
    with pytest.raises(ValueError, match="after step 4"):
        checkpoints.save(3, state, {})


def test_leftovers_of_killed_runs_go_with_the_first_save_and_not_before(checkpoints, said):
    leftovers = ["7.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1234", "removing-2"]
    for name in leftovers:
        (checkpoints.folder / name / "state").mkdir(parents=True)
    reader = RunCheckpoints(checkpoints.folder)
    assert reader.steps() == []
    reader.close()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == sorted(leftovers)
    checkpoints.save(8, make_state(), {})
    checkpoints.wait()
    assert [p.name for p in checkpoints.folder.iterdir()] == ["8"]
    assert said == []


def test_a_write_that_fails_is_a_run_error_once_and_leaves_the_step_before(checkpoints, capfd):
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=400_000), jnp.float32)}
    checkpoints.save(1, jax.tree.map(lambda x: x[:100], state), {"step": 1})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(RunError, match="step 2 could not be written"):
            checkpoints.save(2, state, {"step": 2})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert "Traceback" not in capfd.readouterr().err


def test_leaves_go_to_the_shardings_of_the_template(checkpoints):
    if jax.device_count() < 4:
        pytest.skip("needs the four simulated devices of conftest.py")
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes))) for axes in (("a", "b"), (None, "a"), ())]
    assert len({int(_digest(leaf)) for leaf in placed}) == 1
    checkpoints.save(1, {"w": placed[0]}, {})
    sharding = NamedSharding(mesh, PartitionSpec("b"))
    restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)})
    assert restored["w"].sharding == sharding
    np.testing.assert_array_equal(restored["w"], x)


def test_every_single_bit_changes_the_digest():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    known = int(_digest(x))
    for bit in range(x.size * 32):
        flipped = x.view(np.uint32).copy()
        flipped.flat[bit // 32] ^= np.uint32(1 << (bit % 32))
        assert int(_digest(flipped.view(np.float32))) != known
    assert int(_digest(x[::-1].copy())) != known
    assert int(_digest(np.zeros((3, 5), np.float32))) != int(_digest(np.full((3, 5), -0.0, np.float32)))


def test_the_record_is_readable_json(written):
    record = json.loads((written / "1" / "record" / "metadata").read_text())
    assert record["leaves"]["live/head/out/kernel"]["shape"] == [24, 16]
    assert record["meta"] == {"step": 1}
