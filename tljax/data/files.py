"""Finding the file or folder that a local source means: here or in the data folder, one in all or one a split."""

import os
from pathlib import Path

from tljax.base.errors import UserError
from tljax.data.prepare import data_folder
from tljax.data.roles import choose_split

WHOLE = ("train", "all")
"""The names of the only split of a source that has no splits."""


def find_path(rest: str, data_dir: str | os.PathLike | None, *, where: str) -> Path:
    """The existing path that `rest` means (`~` and `$VARIABLES` are filled in), here or under the data folder."""
    path = Path(os.path.expandvars(rest)).expanduser()
    tried = [path]
    if not path.is_absolute() and not path.exists():
        folder = data_folder(data_dir)
        tried += [folder / path] if folder else []
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise UserError(f"{where}: there is no {' and no '.join(str(p) for p in tried)}.")


def split_files(
    rest: str, split: str, data_dir: str | os.PathLike | None, *, suffix: str, where: str
) -> tuple[Path, list[Path]]:
    """(the file of `split`, the files of all splits).

    `rest` is a file, which has one split; a folder of files named after splits (`train.csv`, `test.csv`); or a path
    with `{split}` in it.

    Raises:
      UserError: no such file, or no such split (with those that there are).
    """
    if "{split}" in rest:
        before, _, after = rest.partition("{split}")
        parent = find_path(os.path.dirname(before) or ".", data_dir, where=where)  # noqa: PTH120 — text, not a path
        prefix = os.path.basename(before)  # noqa: PTH119
        files = {p.name[len(prefix) : len(p.name) - len(after)]: p for p in sorted(parent.glob(f"{prefix}*{after}"))}
    else:
        path = find_path(rest, data_dir, where=where)
        if path.is_file():
            _one_split(split, where, f"a folder with a {split}{suffix} in it, or a path with {{split}} in it,")
            return path, [path]
        files = {p.stem: p for p in sorted(path.glob(f"*{suffix}"))}
    if not files:
        raise UserError(f"{where}: there is no {suffix} file of any split.")
    return files[choose_split(split, files, where=where)], list(files.values())


def _one_split(split: str, where: str, cure: str) -> None:
    if split not in WHOLE:
        raise UserError(
            f"{where} has no split {split!r}: it is one file, whose only split is 'train' (or 'all'). Name {cure} "
            "or open the file of that split by its own name."
        )
