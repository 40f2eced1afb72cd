"""What the chips of Cloud TPU can do, as their makers publish it."""

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of TPU chip.

    Attributes:
      flops: peak FLOP/s in bfloat16.
      hbm: bytes of memory.
      hbm_bandwidth: bytes/s.
      ici: bytes/s over all links between chips and in both directions together.
      axes: of the torus of a pod.
      source: where the numbers stand.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    axes: int
    source: str


GB, GIB = 1e9, 2.0**30
DOCS = "https://docs.cloud.google.com/tpu/docs"

CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1200 * GB, 600 * GB, 3, f"{DOCS}/v4; links: Jouppi et al. 2023, arXiv 2304.01433"),
    "v5e": Chip(197e12, 16 * GIB, 819 * GB, 400 * GB, 2, f"{DOCS}/v5e"),
    "v5p": Chip(459e12, 95 * GIB, 2765 * GB, 1200 * GB, 3, f"{DOCS}/v5p"),
    "v6e": Chip(918e12, 32 * GIB, 1638 * GB, 800 * GB, 2, f"{DOCS}/v6e"),
    "tpu7x": Chip(2307e12, 192 * GIB, 7380 * GB, 1200 * GB, 3, f"{DOCS}/tpu7x"),
}
"""Name, as in a topology, → chip. Read in November 2026; memory in GiB where the page says GB, as XLA counts it."""

EXAMPLES = ("v4:2x2x4", "v5e:2x2", "v5e:4x4", "v5e:8x16", "v5e:16x16", "v5p:4x4x4", "v5p:8x8x4", "v6e:4x4", "v6e:16x16")
"""Topologies that libtpu 0.0.51 knows."""
