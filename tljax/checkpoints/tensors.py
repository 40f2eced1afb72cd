"""A tensor of a foreign file, not yet read."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
      shape: as stored.
      dtype: as stored.
      read: () → array; memory-mapped where the format allows it, so treat it as read-only.
      file: where it stands, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: str
