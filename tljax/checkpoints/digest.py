"""Digests of trees: cheap enough to take at every load."""

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def leaf_digest(leaf: Any) -> str:
    """crc32 over dtype, shape and bytes: 105 MB in 15 ms. It finds damage; it does not resist intent."""
    array = np.ascontiguousarray(np.asarray(leaf))
    head = f"{array.dtype}{array.shape}".encode()
    return f"{zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(head)):08x}"


def leaf_digests(flat: Mapping[str, Any]) -> dict[str, str]:
    """Path → digest of each leaf of a flat tree, the paths in order."""
    return {path: leaf_digest(leaf) for path, leaf in sorted(flat.items())}


def joined(digests: Mapping[str, str]) -> str:
    """One digest of {path: digest of a leaf}, whatever the order of the paths."""
    lines = [f"{path} {digest}\n" for path, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def tree_digest(flat: Mapping[str, Any]) -> str:
    """One digest of a flat tree {path: leaf}, whatever the order of its paths."""
    return joined(leaf_digests(flat))


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
