"""Changing the shape of a pretrained leaf: position tables, first kernels, vocabularies.

Plain NumPy, on the host, once. Results are computed in float32 and have the dtype of the input.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tljax.base.types import Resize
from tljax.models.heads import LanguageModel


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """(new, old): cubic convolution (Keys 1981) with a = -0.75, half-pixel centres, borders repeated.

    These are torch's weights (`interpolate`, bicubic, `align_corners=False`, no antialiasing), and so the reference's
    for position tables; `jax.image.resize` has a = -0.5 and renormalises at borders instead.
    """
    a = -0.75
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        d = np.abs(position - (first + tap))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)


def resize_grid(table: Any, old: tuple[int, int], new: tuple[int, int], *, extra: int = 0) -> np.ndarray:
    """A table of positions (extra + H·W, D) for a grid of another size; the first `extra` rows are kept.

    Args:
      table: row-major positions.
      old: (H, W) of the table.
      new: (H, W) of the result.
      extra: rows before the grid (class and distillation tokens).
    """
    table = np.asarray(table)
    grid = table[extra:].astype(np.float32).reshape(*old, -1)
    grid = np.einsum("hi,wj,ijd->hwd", bicubic_matrix(old[0], new[0]), bicubic_matrix(old[1], new[1]), grid)
    return np.concatenate([table[:extra], grid.reshape(-1, table.shape[1]).astype(table.dtype)])


def resize_positions(table: Any, count: int) -> np.ndarray:
    """A learned 1-D table (T, D) with `count` rows: cut, or repeated from its start.

    Repetition keeps what the table says about near neighbours (Beltagy, Peters and Cohan 2020, Longformer).
    """
    table = np.asarray(table)
    return np.resize(table, (count, table.shape[1]))


def resize_channels(kernel: Any, channels: int) -> np.ndarray:
    """A first kernel (H, W, C, D) for another number of input channels.

    One channel gets the sum over the old ones, so that a grey image gives what it gave as three equal channels. More
    are the old ones in turn, scaled so that equal channels still give the same. Fewer are the first ones, scaled up.
    """
    kernel = np.asarray(kernel)
    old = kernel.shape[2]
    values = kernel.astype(np.float32)
    if channels == 1:
        return values.sum(axis=2, keepdims=True).astype(kernel.dtype)
    turn = np.arange(channels) % old
    weight = 1 / np.bincount(turn, minlength=old)[turn] if channels >= old else np.full(channels, old / channels)
    return (values[:, :, turn] * weight[:, None].astype(np.float32)).astype(kernel.dtype)


def resize_vocabulary(table: Any, count: int, rng: jax.Array) -> np.ndarray:
    """A table of word vectors (V, D) with `count` rows: cut at the end, or grown.

    New rows are the mean of the old ones plus noise of a hundredth of their deviation: near the mean they take little
    of anyone's probability (Hewitt 2021), and the noise tells them apart.
    """
    table = np.asarray(table)
    grow = count - len(table)
    if grow <= 0:
        return table[:count].copy()
    values = table.astype(np.float32)
    noise = np.asarray(jax.random.normal(rng, (grow, table.shape[1])), np.float32)
    rows = values.mean(axis=0) + 0.01 * values.std(axis=0) * noise
    return np.concatenate([table, rows.astype(table.dtype)])


def resize_language_model(
    head: LanguageModel, leaves: Mapping[str, Any], count: int, rng: jax.Array
) -> tuple[LanguageModel, dict[str, Any]]:
    """A language-model head for another vocabulary: (module, its leaves by path), grown or cut as the words are.

    Args:
      head: the module.
      leaves: `out/kernel` (D, V) unless it is tied, `out/bias` (V,) if it has one, and others, which stay.
      count: the new V.
      rng: for the new rows.
    """
    leaves = dict(leaves)
    if "out/kernel" in leaves:
        leaves["out/kernel"] = resize_vocabulary(np.asarray(leaves["out/kernel"]).T, count, rng).T
    if "out/bias" in leaves:
        leaves["out/bias"] = resize_vocabulary(np.asarray(leaves["out/bias"])[:, None], count, rng)[:, 0]
    return head.clone(vocabulary=count), leaves


def entry_resize(path: str, entry: str, resize: Callable[[Any, Any, Any, Any], Any], *, how: str) -> Resize:
    """A `Resize` whose new value is one entry of the config, under the same name in config.json.

    Args:
      path: the leaf, under `params/`.
      entry: of the family's config and of config.json.
      resize: (array, config before, new value, rng key) → array.
      how: the method, in a few words.
    """

    def config(before: Any, value: Any) -> Any:
        return dataclasses.replace(before, **{entry: value})

    def source(entries: Mapping[str, Any], value: Any) -> dict[str, Any]:
        return {entry: value}

    # Export writes the new shape. No resize here is undone without loss: trained rows and channels have been mixed.
    return Resize(path=path, config=config, source=source, resize=resize, undoable=False, how=how)


def vocabulary_resize(path: str) -> Resize:
    """The rows of a table of words, by the entry `vocab_size`."""
    return entry_resize(
        path,
        "vocab_size",
        lambda table, before, value, rng: resize_vocabulary(table, value, rng),
        how="cut at the end, or grown by rows near the mean",
    )


def positions_resize(path: str, entry: str = "max_position_embeddings") -> Resize:
    """The rows of a table of positions, by `entry`."""
    return entry_resize(
        path,
        entry,
        lambda table, before, value, rng: resize_positions(table, value),
        how="cut at the end, or repeated from the start",
    )


def channels_resize(path: str) -> Resize:
    """Another number of input channels."""
    return entry_resize(
        path,
        "num_channels",
        lambda array, before, value, rng: resize_channels(array, value),
        how="channels summed or repeated, so that equal channels give what they gave",
    )
