"""Checkpoints with a flipped bit or a cut file: restored with their own bits, or those of the step before, or never."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import RunError
from tljax.checkpoints.run import RunCheckpoints

Shapes = Callable[[Any], Any]


def state(step: int, place: Callable[[Any], Any] = jnp.asarray) -> dict[str, Any]:
    """Leaves of several sizes and dtypes, other ones for each step."""
    generator = np.random.default_rng(step)
    live = {f"block{i}/kernel": generator.normal(size=(64, 48)).astype(np.float32) for i in range(3)}
    live["embed/table"] = generator.normal(size=(256, 16)).astype(np.float32)
    moments = {name: generator.normal(size=leaf.shape).astype(np.float32) for name, leaf in live.items()}
    half = {"mean": generator.normal(size=(64,)).astype(jnp.bfloat16)}
    return jax.tree.map(place, {"live": live, "optimizer": moments, "batch_stats": half, "count": np.int32(step)})


def write(folder: Path, place: Callable[[Any], Any] = jnp.asarray) -> Any:
    """Saves the steps 1 and 2; returns the template of a state."""
    checkpoints = RunCheckpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state(step, place), {"step": step})
    checkpoints.close()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1, place))


def damage(folder: Path, kind: str, generator: np.random.Generator) -> str:
    """Flips a bit of, or cuts, a file of step 2 that is chosen by size; returns what was done."""
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size)
    sizes = np.array([path.stat().st_size for path in files])
    # Half of the time anywhere in the bytes, half of the time in any file: metadata are small.
    shares = sizes / sizes.sum() if generator.random() < 0.5 else np.full(len(files), 1 / len(files))
    path = files[generator.choice(len(files), p=shares)]
    content = bytearray(path.read_bytes())
    position = int(generator.integers(len(content)))
    if kind == "bit":
        content[position] ^= 1 << int(generator.integers(8))
    else:
        del content[position:]
    path.write_bytes(content)
    return f"{path.relative_to(folder)}, {kind} at byte {position} of {path.stat().st_size}"


def restored(folder: Path, template: Any) -> str:
    """ "same", "step before", "refused": how step 2 was restored; "SILENTLY WRONG" where it was so."""
    checkpoints = RunCheckpoints(folder, say=lambda line: None)
    try:
        found, meta = checkpoints.restore(template)
    except RunError:
        return "refused"
    finally:
        checkpoints.close()
    wanted = state(meta["step"])
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    if any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in leaves):
        return "SILENTLY WRONG"
    return "same" if meta["step"] == 2 else "step before"


def fuzz(
    folder: Path, count: int, kind: str, *, seed: int = 0, place: Callable[[Any], Any] = jnp.asarray
) -> dict[str, int]:
    """How often each outcome came of `count` damages of one kind."""
    template, generator, outcomes = write(folder / "whole", place), np.random.default_rng(seed), {}
    for number in range(count):
        copy = folder / f"damaged{number}"
        shutil.copytree(folder / "whole", copy)
        what = damage(copy, kind, generator)
        outcome = restored(copy, template)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome == "SILENTLY WRONG":
            print(f"{outcome}: {what}")
        else:
            shutil.rmtree(copy)
    return outcomes
