"""Writing small files so that they are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Puts `content` into `path`; whoever reads meanwhile, or after a kill, finds the old content or the new one.

    A file beside it is written, reaches the disk, and takes its name. What a kill leaves of it the next writer uses up;
    two must not write at a time.

    Raises:
      OSError: the disk is full or cannot be written; `path` is as it was, and nothing else is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
