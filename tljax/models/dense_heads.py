"""Heads that predict at every place of an image, from the feature pyramid of a backbone."""

import math
from typing import Any

import flax.linen as nn
import jax

from tljax.models.heads import STARTS
from tljax.models.layers import Conv, dropout

GROUPS = 32
"""The most groups that a group norm has."""


class Segmenter(nn.Module):
    """A class for every place of the finest map of `pyramid`, as `logits` (B, H, W, Y).

    Kirillov, Girshick, He and Dollár 2019 (panoptic feature pyramid networks, https://arxiv.org/abs/1901.02446), with
    one 3×3 convolution a level: each map passes a 1×1 convolution, and the coarser result, enlarged, is added to it
    (Lin et al. 2017); each sum passes a 3×3 convolution, a group norm and relu; all are enlarged to the finest and
    added; dropout and a 1×1 convolution give the logits. Enlarging is bilinear.

    Parameters, by level from the finest: `lateral0/…`, `smooth0/…`, `norm0/…` and so on; `out/…`.

    Attributes:
      classes: Y.
      width: channels between the convolutions.
      dropout: rate before the last layer.
      start: how the last kernel starts, a key of `STARTS`.
    """

    classes: int
    width: int = 128
    dropout: float = 0.1
    start: str = "normal"

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        maps = sorted(outputs["pyramid"], key=lambda x: x.shape[1] * x.shape[2], reverse=True)
        laterals = [Conv(self.width, (1, 1), use_bias=True, name=f"lateral{i}")(x) for i, x in enumerate(maps)]
        above, total = None, 0.0
        for i in reversed(range(len(maps))):
            above = laterals[i] if above is None else laterals[i] + enlarged(above, laterals[i].shape[1:3])
            y = Conv(self.width, (3, 3), padding=1, name=f"smooth{i}")(above)
            y = jax.nn.relu(nn.GroupNorm(math.gcd(GROUPS, self.width), epsilon=1e-5, name=f"norm{i}")(y))
            total = total + enlarged(y, maps[0].shape[1:3])
        total = dropout(self, total, self.dropout, train)
        out = Conv(self.classes, (1, 1), use_bias=True, kernel_init=STARTS[self.start], name="out")
        return {**outputs, "logits": out(total)}


def enlarged(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A map (B, H, W, D) at another (height, width), bilinear between the centres of its places, in its own dtype."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)
