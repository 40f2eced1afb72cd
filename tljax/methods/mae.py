"""Masked autoencoders: most patches of an image are hidden, and a small decoder fills them in. He et al. 2022.

Axes: B batch, N patches, K visible patches, P values of a patch, D width of the backbone, W width of the decoder.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.models.layers import ACTIVATIONS, attention


def mae(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    ratio: float = 0.75,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    norm_pix: bool = True,
) -> Method:
    """The backbone sees a part of the patches; from these a decoder paints the others, arXiv 2111.06377.

    The decoder is a transformer of pre-norm blocks over all places: the backbone's tokens where a patch was seen, one
    learnt token elsewhere, and fixed sine and cosine positions in two dimensions. It stands in the wing `method/` and
    is left behind in an export.

    Args:
      forward: see `Method`; with the input `visible` (B, K), and the outputs `hidden` (B, T, D) whose last K tokens are
        those patches, `patches` (B, N, P) and `pyramid`, which tells the grid.
      task: gives the model inputs; its loss is not used, and no labels are.
      ratio: share of the patches that are hidden; the visible ones are rounded down.
      width: W, a multiple of 4 and of `heads`.
      depth: blocks of the decoder.
      heads: of the decoder's attention.
      norm_pix: each patch is to be painted less its mean and divided by its standard deviation.

    Returns:
      A `Method` with the loss `reconstruction`: the mean squared error of a patch, a mean over hidden patches.

    Raises:
      UserError: options out of range; a backbone that gives out no patches, or too few to hide some and show some.
    """
    _check(ratio=ratio, width=width, depth=depth, heads=heads)

    def init(rng, shapes):
        if shapes.get("patches") is None:
            given = ", ".join(name for name, shape in shapes.items() if shape is not None)
            raise UserError(
                "The method mae hides patches, and this backbone gives out none (`patches`), but "
                f"{given or 'nothing'}. Use a model of the families vit or deit."
            )
        (_, count, size), inner = shapes["patches"].shape, shapes["hidden"].shape[-1]
        if not 0 < visible_count(count, ratio) < count:
            raise UserError(
                f"config.method.ratio is {ratio}, and of {count} patches {visible_count(count, ratio)} would be "
                "visible; at least one must be, and one hidden. Change the ratio, or the model's patch_size."
            )
        if norm_pix and size == 1:
            raise UserError("config.method.norm_pix divides by the deviation of a patch, and a patch is one number.")
        return init_decoder(rng, inner, size, width=width, depth=depth), {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        inputs, (mask_key, forward_key) = task.inputs(batch), jax.random.split(rng)
        shapes = jax.eval_shape(lambda: forward(params, state, inputs, forward_key, train=False)[0])
        visible, hidden = sample_visible(mask_key, shapes["patches"].shape[:2], ratio)
        outputs, state = forward(params, state, {**inputs, "visible": visible}, forward_key, train=True)
        weight = jnp.asarray(batch["weight"], jnp.float32)
        grid = shapes["pyramid"][0].shape[1:3]
        painted = decode(params["method"], outputs["hidden"], visible, grid, heads=heads)
        return {"reconstruction": reconstruction(painted, outputs["patches"], hidden, weight, norm_pix)}, state, {}

    return Method(loss=loss, init=init, streams={"train": "unlabelled"}, changes_inputs=True)


def _check(*, ratio: float, **sizes: Any) -> None:
    faults = [
        f"{name} is {size!r}; it must be a whole number from 1."
        for name, size in sizes.items()
        if not isinstance(size, int) or size < 1
    ]
    if not faults and (sizes["width"] % 4 or sizes["width"] % sizes["heads"]):
        faults.append(f"width is {sizes['width']}; it must be a multiple of 4 and of heads, {sizes['heads']}.")
    if not 0 < ratio < 1:
        faults.append(f"ratio is {ratio!r}; it must be above 0 and below 1.")
    raise_faults("The section config.method cannot be used:", faults)


def visible_count(count: int, ratio: float) -> int:
    """K of N patches."""
    return int(count * (1 - ratio) + 1e-6)  # 1 − 0.9 is a little less than 0.1


def sample_visible(rng: jax.Array, shape: tuple[int, int], ratio: float) -> tuple[jax.Array, jax.Array]:
    """(places of the visible patches (B, K), whether a patch is hidden (B, N)): the K of the least noise are visible.

    Args:
      rng: key.
      shape: (B, N).
      ratio: see `mae`.
    """
    order = jnp.argsort(jax.random.uniform(rng, shape), axis=1)
    kept = visible_count(shape[1], ratio)
    return order[:, :kept], jnp.argsort(order, axis=1) >= kept


def init_decoder(rng: jax.Array, inner: int, size: int, *, width: int, depth: int) -> dict[str, Any]:
    """Random parameters of the wing `method/`, float32: kernels as by Glorot and Bengio 2010, as in the paper.

    Args:
      rng: key.
      inner: D.
      size: P.
      width: W; the hidden layer of a block is four times as wide.
      depth: blocks.
    """
    start = jax.nn.initializers.glorot_uniform()
    keys = iter(jax.random.split(rng, 3 + 6 * depth))

    def dense(fan_in, fan_out):
        return {"kernel": start(next(keys), (fan_in, fan_out)), "bias": jnp.zeros(fan_out)}

    def norm():
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def block():
        return {
            "norm1": norm(),
            **{name: dense(width, width) for name in ("query", "key", "value", "output")},
            "norm2": norm(),
            "up": dense(width, 4 * width),
            "down": dense(4 * width, width),
        }

    return {
        "embed": dense(inner, width),
        "hidden_patch": 0.02 * jax.random.normal(next(keys), (width,)),
        **{f"block{i}": block() for i in range(depth)},
        "norm": norm(),
        "paint": dense(width, size),
    }


def decode(
    wing: Mapping[str, Any], hidden: jax.Array, visible: jax.Array, grid: tuple[int, int], *, heads: int
) -> jax.Array:
    """What the decoder paints at each place, (B, N, P), float32.

    Args:
      wing: parameters under `method/`.
      hidden: (B, T, D), whose last K tokens are the visible patches; those before go along, without a position.
      visible: (B, K), their places.
      grid: patches, (down, across).
      heads: of the attention.
    """
    wing = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wing)
    x = _dense(wing["embed"], hidden.astype(jnp.float32))
    first = x.shape[1] - visible.shape[1]
    empty = jnp.broadcast_to(wing["hidden_patch"], (grid[0] * grid[1], x.shape[-1]))
    places = jax.vmap(lambda at, tokens: empty.at[at].set(tokens))(visible, x[:, first:])
    x = jnp.concatenate([x[:, :first], places + sine_positions(grid, x.shape[-1])], axis=1)
    for i in range(sum(name.startswith("block") for name in wing)):
        x = _block(wing[f"block{i}"], x, heads)
    return _dense(wing["paint"], _norm(wing["norm"], x)[:, first:])


def reconstruction(
    painted: jax.Array, patches: jax.Array, hidden: jax.Array, weight: jax.Array, norm_pix: bool
) -> Loss:
    """The squared error of hidden patches, a mean over their values.

    Args:
      painted: (B, N, P).
      patches: (B, N, P), the true pixels.
      hidden: (B, N), which patches count.
      weight: (B,), of the images.
      norm_pix: see `mae`.
    """
    wanted = patches.astype(jnp.float32)
    if norm_pix:
        deviation = jnp.sqrt(jnp.var(wanted, axis=-1, keepdims=True, ddof=1) + 1e-6)
        wanted = (wanted - jnp.mean(wanted, axis=-1, keepdims=True)) / deviation
    counts = hidden * weight[:, None]
    return Loss(jnp.sum(jnp.mean(jnp.square(painted - wanted), axis=-1) * counts), jnp.sum(counts))


def sine_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """(N, W): a quarter each of sine and cosine of the place across, then down (Vaswani et al. 2017, for each axis).

    The published decoders have the axes in this order.
    """
    rates = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    down, across = (axis.reshape(-1, 1) * rates for axis in np.indices(grid))
    return np.concatenate([np.sin(across), np.cos(across), np.sin(down), np.cos(down)], axis=1).astype(np.float32)


def _block(leaves: Mapping[str, Any], x: jax.Array, heads: int) -> jax.Array:
    y = _norm(leaves["norm1"], x)
    split = (*x.shape[:-1], heads, -1)
    q, k, v = (_dense(leaves[name], y).reshape(split) for name in ("query", "key", "value"))
    x = x + _dense(leaves["output"], attention(q, k, v).reshape(x.shape))
    y = ACTIVATIONS["gelu"](_dense(leaves["up"], _norm(leaves["norm2"], x)))
    return x + _dense(leaves["down"], y)


def _norm(leaves: Mapping[str, jax.Array], x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon) * leaves["scale"] + leaves["bias"]


def _dense(leaves: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    # One matrix, not a batch of them, for the sake of the kernel's gradient on CPU (`tljax.models.layers.Dense`).
    y = x.reshape(-1, x.shape[-1]) @ leaves["kernel"] + leaves["bias"]
    return y.reshape(*x.shape[:-1], -1)
