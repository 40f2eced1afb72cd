"""The run's own checkpoints: written by Orbax in the background, verified leaf by leaf when they are read.

Orbax notices neither a flipped bit in a data file nor a step folder without content. So each step carries a record: the
shape, dtype and digest of every leaf, next to the caller's own `meta`, under a checksum. A step counts only with its
record, and is handed out only if every leaf has its digest.

Of several processes each writes and reads the parts of leaves that lie on its own devices. What else is done to files,
and what is decided by looking at them, is process 0's: the others are told. So all choose the same step.
"""

import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from tljax.base.errors import RunError, UserError
from tljax.base.processes import agreed, lost, together
from tljax.checkpoints.digest import digesting, digests_there
from tljax.checkpoints.record import RecordHandler, SaveRecord, described, read_record

QUARANTINE = "quarantine"
_LEFTOVER = re.compile(r".*\.orbax-checkpoint-tmp.*|removing-.*")


class Damaged(Exception):
    """A step cannot be trusted; the message says why."""


class RunCheckpoints:
    """The checkpoints below one folder, `<step>/` each. A class because it owns the thread that writes.

    Opening it changes nothing on disk, so that a run can be read while it trains. A checkpoint that `save_best` wrote
    is an ordinary one with a mark: training continues from it as well as from any other.

    Args:
      folder: made by the first save.
      keep_last: newest steps that are kept; for each of them, the best step up to it is kept too, so that falling back
        from a damaged step never loses the best one.
      keep_every: steps that are multiples of it are kept for good; None keeps none of them.
      keep_best: so many of the steps that were the best when they were saved are kept, the newest of them.
      say: is given one line for everything a user should know; the default prints to stderr.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        keep_best: int = 1,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ):
        self.folder = Path(folder).absolute()
        self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
        self._say = say
        self._writing: int | None = None
        self._tidied = False
        # Without compression: float32 noise shrinks by 8 % for 50 % more processor time.
        self._handler = ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(use_compression=False), record=RecordHandler()
        )
        self._orbax = ocp.AsyncCheckpointer(self._handler)
        logging.getLogger("absl").addFilter(_not_raised_anyway)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the arrays of `state` may be changed or donated.

        The step counts from the moment at which it stands on disk whole, with its record. Writing a step again with
        the same bits and the same `meta` does nothing.

        Args:
          step: at least that of the newest checkpoint.
          state: pytree of arrays; typed random keys as their key data.
          meta: JSON values.

        Raises:
          RunError: this checkpoint or the one before could not be written (full disk).
        """
        self._write(step, state, meta, best=False)

    def save_best(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """As `save`, and marks the step as the best so far."""
        self._write(step, state, meta, best=True)

    def steps(self) -> list[int]:
        """The complete steps, ascending. Empty folders and those without a sound record do not count."""
        return sorted(self._records())

    def has_best(self) -> bool:
        """Whether a step is marked as the best."""
        return any(record["best"] for record in self._records().values())

    def newest(self) -> tuple[int, list[str], dict[str, Any]]:
        """(step, names of the leaves, meta) of the newest complete step; there must be one. No array is read."""
        records = self._records()
        step = max(records)
        return step, list(records[step]["leaves"]), records[step]["meta"]

    def restore(
        self, template: Any, *, step: str | None = None, partial: bool = False, lenient: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """The newest intact checkpoint, or the newest one that was marked as the best.

        A damaged step is said, moved to `quarantine/`, and the one before is tried.

        Args:
          template: step → pytree of `jax.ShapeDtypeStruct`, or one for all steps; leaves go straight to its shardings
            (the first device where it has none).
          step: None or "best".
          partial: leave what the template does not name unread (the optimizer's state, to predict).
          lenient: as `partial`; and what the checkpoint does not hold, or in another shape, comes back as it stands in
            the template.

        Returns:
          (state with the structure of `template`, `meta` as it was saved).

        Raises:
          UserError: the checkpoint holds other leaves than the template; the message lists them.
          RunError: there is no intact checkpoint, or the place cannot be read.
        """
        if step not in (None, "best"):
            raise ValueError(f"step is {step!r}; it must be None or 'best'")
        self.wait()
        agreed(self._set_incomplete_aside)
        tried: set[int] = set()
        while True:
            records = {n: r for n, r in self._records().items() if n not in tried and (step is None or r["best"])}
            if not records:
                raise RunError(self._nothing_intact("best " if step else "", len(tried)))
            number = max(records)
            tried.add(number)
            saved = records[number]["leaves"]
            every, treedef = _flat(template(number) if callable(template) else template)
            wanted = {name: spec for name, spec in every.items() if not lenient or _fits(saved.get(name), spec)}
            if partial or lenient:
                saved = {name: leaf for name, leaf in saved.items() if name in wanted}
            _check_leaves(self.folder / str(number), saved, wanted)
            try:
                leaves = self._read(number, saved, wanted)
            except Damaged as damage:
                why = str(damage)
                agreed(lambda number=number, why=why: self._set_aside(number, why))
                continue
            return jax.tree.unflatten(treedef, {**every, **leaves}.values()), records[number]["meta"]

    def wait(self) -> None:
        """Returns when everything is on disk and what is no longer needed is gone; raises as `save`."""
        step, self._writing = self._writing, None
        try:
            self._orbax.wait_until_finished()
        # The background thread hands over whatever stopped it: OSError, or ValueError from TensorStore.
        except Exception as error:
            raise RunError(lost(error) or self._write_failed(step, error)) from error
        if step is not None:
            agreed(self._prune)

    def close(self) -> None:
        """Waits, then frees the threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _write(self, step: int, state: Any, meta: Mapping[str, Any], *, best: bool) -> None:
        # Copies of what is not a jax array: Orbax reads later what a NumPy array holds then.
        leaves = {n: x if isinstance(x, jax.Array) else jnp.array(x) for n, x in _flat(state)[0].items()}
        record = json.loads(json.dumps({"step": int(step), "best": best, "meta": dict(meta)}))
        self.wait()
        agreed(self._tidy)
        there = self._records()
        if there and max(there) > step:
            raise ValueError(f"step {step} comes after step {max(there)}, which is saved")
        digests = digesting(leaves)
        if step in there:
            record["best"] = best or there[step]["best"]
            found = described(record, leaves, digests)
            if agreed(lambda: there[step] == found):
                return
        written = {name: x for name, x in leaves.items() if x.size}  # Orbax refuses empty arrays
        forms = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in leaves.items()}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(written), record=SaveRecord(lambda: described(record, forms, digests))
        )
        try:
            self._orbax.save(self.folder / str(step), args=items, force=True)
        except OSError as error:
            raise RunError(self._write_failed(step, error)) from error
        self._writing = step

    def _read(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        stored = {name: spec for name, spec in wanted.items() if math.prod(spec.shape)}
        arguments = {
            name: ocp.ArrayRestoreArgs(sharding=_sharding(spec), global_shape=spec.shape, dtype=spec.dtype)
            for name, spec in stored.items()
        }
        item = ocp.args.PyTreeRestore(item=stored, restore_args=arguments, partial_restore=True)
        leaves = together(lambda: self._leaves(step, item), Damaged, RunError)
        leaves = {
            name: leaves[name] if name in stored else jnp.zeros(spec.shape, spec.dtype, device=_sharding(spec))
            for name, spec in wanted.items()
        }
        # What damaged metadata do not name comes back as the template's own placeholder.
        lost = [name for name, x in leaves.items() if not isinstance(x, jax.Array)]
        if lost:
            raise Damaged(f"{len(lost)} of {len(leaves)} leaves were not found ({_some(lost, 3)})")
        wrong = [name for name, digest in digests_there(leaves).items() if digest != saved[name]["digest"]]
        if wrong:
            raise Damaged(f"{len(wrong)} of {len(leaves)} leaves do not have their digest ({_some(wrong, 3)})")
        return leaves

    def _leaves(self, step: int, item: Any) -> dict[str, Any]:
        # By the handler and not by the checkpointer, which would wait for a process that found damage.
        try:
            folder = epath.Path(self.folder / str(step))
            return self._handler.restore(folder, args=ocp.args.Composite(state=item))["state"]
        except (PermissionError, MemoryError, jax.errors.JaxRuntimeError) as error:
            raise RunError(f"The checkpoint {self.folder / str(step)} cannot be read: {error}") from error
        # Damaged files come to light as almost anything: ValueError, KeyError, FileNotFoundError, TypeError …
        except Exception as error:
            raise Damaged(f"it cannot be read ({_first_line(error)})") from error

    def _records(self) -> dict[int, dict[str, Any]]:
        found = agreed(self._records_there)
        return {int(step): record for step, record in found.items()}

    def _records_there(self) -> dict[int, dict[str, Any]]:
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = {int(path.name): read_record(path) for path in folders if path.name.isdigit()}
        return {step: record for step, record in found.items() if record is not None}

    def _tidy(self) -> None:
        """Once, before the first save: removes what killed runs left behind."""
        if self._tidied:
            return
        self._tidied = True
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in list(self.folder.iterdir()):
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)
        self._set_incomplete_aside()

    def _set_incomplete_aside(self) -> None:
        # Orbax renames a step when it is whole, so what stands under a step's own name is not still being written.
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            if path.name.isdigit() and path.is_dir() and read_record(path) is None:
                self._set_aside(int(path.name), "its record is missing or damaged")

    def _prune(self) -> None:
        records = self._records_there()
        steps = sorted(records)
        bests = [step for step in steps if records[step]["best"]]
        kept = {*steps[-self._keep_last :], *bests[-self._keep_best :]}
        kept |= {step for step in steps if self._keep_every and step % self._keep_every == 0}
        kept |= {max(candidates) for last in kept if (candidates := [s for s in bests if s <= last])}
        for step in steps:
            if step not in kept:
                # Renamed first: for whoever reads meanwhile, a step is there whole or not at all.
                going = (self.folder / str(step)).rename(self.folder / f"removing-{step}")
                shutil.rmtree(going)

    def _set_aside(self, step: int, why: str) -> None:
        folder, number = self.folder / QUARANTINE, 0
        folder.mkdir(exist_ok=True)
        while (target := folder / (f"{step}-{number}" if number else str(step))).exists():
            number += 1
        try:
            (self.folder / str(step)).rename(target)
        except FileNotFoundError:
            return  # the run that trains here removed it in the meantime
        self._say(f"warning: the checkpoint of step {step} is damaged: {why}. It was moved to {target}.")

    def _nothing_intact(self, kind: str, damaged: int) -> str:
        if not damaged:
            return f"There is no {kind}checkpoint in {self.folder}."
        return (
            f"No {kind}checkpoint in {self.folder} is intact: {damaged} damaged, moved to {QUARANTINE}/. "
            "Restore the files from a copy, or start the run again."
        )

    def _write_failed(self, step: int | None, error: Exception) -> str:
        full = "No space left on device"
        reason = full if full in str(error) else _first_line(error)
        free = f"{shutil.disk_usage(self.folder).free / 1e6:.0f} MB free, " if self.folder.is_dir() else ""
        return (
            f"The checkpoint of step {step} could not be written to {self.folder} ({free}{reason}). "
            "Earlier checkpoints are untouched; the same command continues from the newest."
        )


def _flat(tree: Any) -> tuple[dict[str, Any], Any]:
    """({slash path: leaf}, structure)."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the state have the same slash path")
    return flat, treedef


def _sharding(spec: Any) -> jax.sharding.Sharding:
    return getattr(spec, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _check_leaves(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    kinds = {
        "missing from the checkpoint": [name for name in wanted if name not in saved],
        "only in the checkpoint": [name for name in saved if name not in wanted],
        "of another shape or type": [
            f"{name} ({_form(saved[name]['shape'], saved[name]['dtype'])} there, {_form(spec.shape, spec.dtype)} here)"
            for name, spec in wanted.items()
            if name in saved and not _fits(saved[name], spec)
        ],
    }
    faults = [f"  - {len(names)} {kind}: {_some(names, 20)}" for kind, names in kinds.items() if names]
    if faults:
        raise UserError(
            "\n".join([f"The checkpoint {folder} holds other leaves than this run trains:", *faults])
            + "\nUse the config that it was trained with, or another --workdir."
        )


def _fits(saved: Mapping[str, Any] | None, spec: Any) -> bool:
    """Whether a leaf was saved with the shape and dtype of `spec`."""
    return saved is not None and _form(saved["shape"], saved["dtype"]) == _form(spec.shape, spec.dtype)


def _form(shape: Any, dtype: Any) -> str:
    return f"{dtype}{list(shape)}"


def _some(names: list[str], most: int) -> str:
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _not_raised_anyway(record: logging.LogRecord) -> bool:
    """Keeps Orbax from printing tracebacks of failed writes: `wait` raises them as a `RunError`."""
    threads = ("in background save thread", "_SignalingThread.run() raised an exception")
    return not any(thread in str(record.msg) for thread in threads)
