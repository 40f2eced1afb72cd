"""Continuing a run: what it was when its checkpoint was written, what it is now, and what of that may differ."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from tljax.base.errors import UserError, raise_faults
from tljax.base.files import write_whole
from tljax.base.tables import suggest
from tljax.train.records import plain

CONTINUABLE = (
    *("steps", "epochs", "eval_every", "save_every", "log_every", "patience"),
    *("keep_last", "keep_every", "keep_best", "wandb"),
)
"""Keys of `config.train` that change how long, how often or where it shows, and not what: they may differ unnamed."""

SECTIONS = ("data", "mesh", "method", "model", "optim", "seed", "strategy", "task", "train")
"""What a user may allow to differ, by the section of the config to which it belongs."""

PACKAGES = ("tljax", "jax", "flax", "optax", "numpy")
MOST = 8
"""Leaves that a message names."""


class Facts(NamedTuple):
    """What a run trains from, on and with, beside its config.

    Attributes:
      pretrained: leaf path → digest of the pretrained leaf.
      data: entry name → facts on its examples: their number, classes, digests.
      mesh: axes and sizes, platform, processes.
    """

    pretrained: Mapping[str, str] = {}
    data: Mapping[str, Any] = {}
    mesh: Mapping[str, Any] = {}


class Difference(NamedTuple):
    """`text` says what differs, there → here; `section` is the one of the config to which it belongs."""

    section: str
    text: str


def check_allowed(names: Iterable[str]) -> tuple[str, ...]:
    """The names of `--allow`; raises `UserError` for one that is not a section."""
    names = tuple(names)
    raise_faults(
        "--allow names sections of the config that may differ from those of the checkpoint:",
        [f"{name!r}. {suggest(name, SECTIONS)}" for name in names if name not in SECTIONS],
    )
    return names


def claim(
    workdir: Path,
    config: Mapping[str, Any],
    digests: Mapping[str, str],
    summary: Mapping[str, Any],
    *,
    allow: Iterable[str] = (),
) -> None:
    """Writes the run's config.json and inspect.json, or refuses a folder that holds another config.

    Args:
      workdir: made if need be.
      config: resolved.
      digests: of the pretrained tree and of the live set.
      summary: for inspect.json.
      allow: sections of the config that may differ from what stands there.

    Raises:
      UserError: the folder belongs to another config; the message lists every difference.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, mine = workdir / "config.json", plain(dict(config))
    if path.exists():
        refuse(workdir, config_differences(_read(path), mine), allow)
    content = {"config": mine, "digests": dict(digests), **versions_and_devices()}
    write_whole(path, json.dumps(content, indent=2) + "\n")
    write_whole(workdir / "inspect.json", json.dumps(plain(dict(summary)), indent=2) + "\n")


def versions_and_devices() -> dict[str, Any]:
    """On what a run runs, as JSON values: `versions` of packages, and `devices`."""
    devices = jax.devices()
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf8"))["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Restore it from a copy, or remove it: the checkpoints beside it say "
            "themselves what they belong to."
        ) from error


def refuse(workdir: Path, found: Iterable[Difference], allow: Iterable[str]) -> None:
    """Raises `UserError` with all differences where one of them is in a section that is not in `allow`."""
    found = list(found)
    unnamed = sorted({each.section for each in found} - set(allow))
    if not unnamed:
        return
    listing = "\n".join(f"  - {each.text}" for each in found)
    kind = "config" if all(each.text.startswith(each.section) for each in found) else "run"
    raise UserError(
        f"The workdir {workdir} belongs to another {kind}. It differs in (there → here):\n{listing}\n"
        f"Give another --workdir, remove this one, or continue all the same by naming what changes: "
        f"--allow={','.join(unnamed)}"
    )


def described(config: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """What a checkpoint says of its run, as JSON values: the other side of `compared`."""
    devices = jax.devices()
    machine = {"device": devices[0].device_kind, "cores": len(os.sched_getaffinity(0))}
    machine |= {name: version(name) for name in PACKAGES}
    return {"config": plain(dict(config)), **plain(facts._asdict()), "machine": machine}


def compared(
    meta: Mapping[str, Any],
    there: Iterable[str],
    here: Iterable[str],
    *,
    run: Mapping[str, Any],
    digests: Mapping[str, str],
) -> list[Difference]:
    """How the run that wrote a checkpoint differs from the present one.

    Args:
      meta: of the checkpoint.
      there: live leaves in the checkpoint.
      here: leaves that are live now, at the checkpoint's step.
      run: `described` of the present one.
      digests: its digests of the pretrained tree and the live set.
    """
    theirs = meta.get("run") or {}
    found = config_differences(theirs["config"], run["config"]) if theirs else []
    found += _live(set(there), set(here), meta["digests"]["live"] == digests["live"])
    if meta["digests"]["pretrained"] != digests["pretrained"]:
        found += _pretrained(theirs.get("pretrained"), run["pretrained"], meta["digests"], digests)
    for section in ("data", "mesh") if theirs else ():
        texts = differences(theirs[section], run[section], section)
        found += [Difference(section, text) for text in texts]
    return found


def notes(meta: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """A line where machine or versions are others: the run goes on, with other last bits than an undisturbed one."""
    theirs = (meta.get("run") or {}).get("machine")
    found = differences(theirs, run["machine"]) if theirs else []
    ending = "; the last bits of what follows may be others than those of an undisturbed run"
    return [f"another machine or version than before ({', '.join(found)}){ending}"] if found else []


def config_differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[Difference]:
    """What differs between two configs, without what may differ in any case."""
    free = tuple(f"train.{key}:" for key in CONTINUABLE)
    lines = [line for line in differences(theirs, mine) if not line.startswith(free)]
    return [Difference(line.partition(":")[0].partition(".")[0], line) for line in lines]


def _live(there: set[str], here: set[str], same: bool) -> list[Difference]:
    texts = [
        f"{len(paths)} {'leaf' if len(paths) == 1 else 'leaves'} {what}: {_some(paths)}"
        for paths, what in ((here - there, "would train anew"), (there - here, "would no longer train"))
        if paths
    ]
    if not same and not texts:
        texts = ["the leaves that train are the same, and the steps from which on they do are others"]
    return [Difference("strategy", text) for text in texts]


def _pretrained(
    theirs: Mapping[str, str] | None, mine: Mapping[str, str], before: Mapping[str, str], now: Mapping[str, str]
) -> list[Difference]:
    text = f"the pretrained tree is another (digest {before['pretrained']} → {now['pretrained']})"
    if theirs is not None:
        paths = [path for path in {*theirs, *mine} if theirs.get(path) != mine.get(path)]
        text += f": {len(paths)} of its {len(mine)} leaves differ: {_some(paths)}"
    return [Difference("model", text)]


def _some(paths: Iterable[str]) -> str:
    paths = sorted(paths)
    return ", ".join(paths[:MOST]) + (f" … and {len(paths) - MOST} more" if len(paths) > MOST else "")


def differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    """One line for each value that differs between two nested dicts."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return [
            line
            for key in sorted({*theirs, *mine})
            for line in differences(theirs.get(key), mine.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if theirs == mine else [f"{path}: {theirs!r} → {mine!r}"]


def check_digests(digests: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Refuses to read a checkpoint of another pretrained tree or another live set."""
    for name, what in (("pretrained", "pretrained tree"), ("live", "set of live leaves")):
        if meta["digests"][name] != digests[name]:
            raise UserError(
                f"The checkpoint was trained with another {what} "
                f"(digest {meta['digests'][name]}, this one has {digests[name]})."
            )


def say_differences(found: Iterable[Difference], say: Callable[[str], None]) -> None:
    """Prints what differs and was allowed to."""
    for each in found:
        say(f"allowed by --allow={each.section}: {each.text}")
