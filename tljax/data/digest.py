"""The bytes of a record, by which data sets are known again."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np


def record_bytes(record: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> bytes:
    """Keys and values of a record, in the order of the keys; two records with the same bytes are equal."""
    return b"".join(_named(key, record[key]) for key in sorted(record) if key not in without)


def _named(key: str, value: Any) -> bytes:
    content = _bytes(value)
    return f"{key}:{len(content)}:".encode() + content


@functools.singledispatch
def _bytes(value: Any) -> bytes:
    return repr(value).encode()


@_bytes.register
def _(value: bytes) -> bytes:
    return value


@_bytes.register
def _(value: np.ndarray) -> bytes:
    return f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()


@_bytes.register
def _(value: dict) -> bytes:
    return record_bytes(value)


@_bytes.register(list)
@_bytes.register(tuple)
def _(value: list | tuple) -> bytes:
    return b"".join(_named(str(place), each) for place, each in enumerate(value))
