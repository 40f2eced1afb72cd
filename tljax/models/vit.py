"""ViT: a transformer over image patches, and DeiT, its variant with a distillation token.

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; Touvron et al. 2021, https://arxiv.org/abs/2012.12877.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat, Resize
from tljax.base.weights import AS_IS, CONV, Table, reshaped, row
from tljax.models.configs import pair, read_config
from tljax.models.formats import dense_rows, describe_labels, label_count, linear_classifier, norm_rows
from tljax.models.heads import DistilledClassifier
from tljax.models.inputs import start_pixels
from tljax.models.layers import ACTIVATIONS, Conv, Dense, LayerNorm, Mlp, SelfAttention, dropout
from tljax.models.prompts import with_visual_prompts, without_visual_prompts
from tljax.models.resizing import channels_resize, resize_grid
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The entries of config.json that shape a ViT, with transformers' names and defaults.

    Sizes are (height, width). `add_pooling_layer` is an argument of transformers' class and not an entry of its config;
    it is one here. `distilled` says that the family is DeiT.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, ...] = (224, 224)
    patch_size: tuple[int, ...] = (16, 16)
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    add_pooling_layer: bool = True
    distilled: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Patches, (down, across)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def extra_tokens(self) -> int:
        """Tokens before the patches."""
        return 2 if self.distilled else 1

    @property
    def init(self) -> nn.initializers.Initializer:
        """How kernels, tokens and positions start."""
        return nn.initializers.truncated_normal(self.initializer_range)


def configure(entries: Mapping[str, Any], *, distilled: bool = False) -> ViTConfig:
    """config.json → `ViTConfig`; raises `UserError` for what is not implemented."""
    sizes = {name: pair(entries[name]) for name in ("image_size", "patch_size") if name in entries}
    accepted = {"hidden_act": ACTIVATIONS, "pooler_act": ACTIVATIONS}
    config = read_config(
        ViTConfig, {**entries, **sizes, "distilled": distilled}, what="DeiT" if distilled else "ViT", accepted=accepted
    )
    faults = [
        f"{name} is {list(value)}; it must be one size or two."
        for name, value in (("image_size", config.image_size), ("patch_size", config.patch_size))
        if len(value) != 2
    ]
    if config.hidden_size % config.num_attention_heads:
        faults.append(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads.")
    if not faults and 0 in config.grid:
        faults.append(f"a patch of {config.patch_size} is larger than the image of {config.image_size}.")
    raise_faults("This config.json describes no ViT that can be built:", faults)
    return config


def start(config: ViTConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry: `pixel_values` (B, H, W, C), and `visible` (B, K) where the inputs have it.

    `visible` are the places in the grid, row by row, of the patches that the model sees (He et al. 2022); without it it
    sees all.

    Raises:
      UserError: pixels as `start_pixels` has it; a `visible` that is no (B, K) of integers, K from 1 to all patches.
    """
    carry = start_pixels(config, inputs)
    if "visible" not in inputs:
        return carry
    visible, (count, patches) = inputs["visible"], (len(carry["pixel_values"]), math.prod(config.grid))
    shaped = visible.ndim == 2 and visible.shape[0] == count and 1 <= visible.shape[1] <= patches
    if not shaped or not jnp.issubdtype(visible.dtype, jnp.integer):
        raise UserError(
            f"`visible` has the shape {visible.shape} and the type {visible.dtype}; it must be integers of "
            f"({count}, K), K from 1 to the {patches} patches of the image."
        )
    return {**carry, "visible": visible}


def patch_pixels(config: ViTConfig, pixels: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, patches, pixels of a patch · C), patches and their pixels row by row; a rest is cut off."""
    (down, across), (height, width) = config.grid, config.patch_size
    x = pixels[:, : down * height, : across * width]
    x = x.reshape(len(x), down, height, across, width, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), down * across, -1)


class Embeddings(nn.Module):
    """Patches as tokens after the class token (and the distillation token), plus positions.

    Where the carry has `visible`, the other patches are left out once they have their positions.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        patch = Conv(c.hidden_size, c.patch_size, c.patch_size, use_bias=True, kernel_init=c.init, name="patch")
        x = patch(carry["pixel_values"])
        x = x.reshape(x.shape[0], -1, c.hidden_size)
        names = ("cls", "distillation") if c.distilled else ("cls",)
        tokens = jnp.stack([self.param(name, c.init, (c.hidden_size,)) for name in names])
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        x = jnp.concatenate([tokens.astype(x.dtype), x], axis=1)
        x = x + self.param("position", c.init, x.shape[1:])
        handed_on = {"patches": patch_pixels(c, carry["pixel_values"])}
        if "visible" in carry:
            seen = jnp.take_along_axis(x[:, c.extra_tokens :], carry["visible"][..., None], axis=1)
            x = jnp.concatenate([x[:, : c.extra_tokens], seen], axis=1)
            handed_on["visible"] = carry["visible"]
        return {"hidden": dropout(self, x, c.hidden_dropout_prob, train), **handed_on}


class Block(nn.Module):
    """One transformer layer, norms before attention and MLP."""

    config: ViTConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        shared = dict(epsilon=c.layer_norm_eps, pre_norm=True, rate=c.hidden_dropout_prob, init=c.init)
        attend = SelfAttention(
            heads=c.num_attention_heads,
            qkv_bias=c.qkv_bias,
            attention_rate=c.attention_probs_dropout_prob,
            name="attention",
            **shared,
        )
        x = attend(with_visual_prompts(self, carry), None, train)
        x = Mlp(c.intermediate_size, c.hidden_act, name="mlp", **shared)(x, train)
        return {**carry, **without_visual_prompts(x, carry)}


class Norm(nn.Module):
    """The norm after the last block, as a stage."""

    epsilon: float

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        norm = LayerNorm(self.epsilon)
        # The leaves are norm/scale and norm/bias, and not norm/something/scale.
        nn.share_scope(self, norm)
        return {**carry, "hidden": norm(carry["hidden"])}


class Pooler(nn.Module):
    """A dense layer and an activation on the class token."""

    config: ViTConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        c = self.config
        dense = Dense(c.pooler_output_size or c.hidden_size, kernel_init=c.init, name="dense")
        return {**carry, "pooled": ACTIVATIONS[c.pooler_act](dense(carry["hidden"][:, 0]))}


class ViT(Tower):
    """`embed, block0 …, norm, pooler`; the pooler only where the config has one."""

    config: ViTConfig

    def chain(self) -> dict[str, Any]:
        c = self.config
        blocks = {f"block{i}": functools.partial(Block, c) for i in range(c.num_hidden_layers)}
        pooler = {"pooler": functools.partial(Pooler, c)} if c.add_pooling_layer else {}
        norm = functools.partial(Norm, c.layer_norm_eps)
        return {"embed": functools.partial(Embeddings, c), **blocks, "norm": norm, **pooler}

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage not in ("norm", "pooler"))


def finish(config: ViTConfig, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), pooled (B, D) or None, mask (B, T): 1 for patches, 0 for the tokens before them.

    And pyramid: one map, the patches of `hidden` in their grid, none where `visible` says which; and patches (B, N, P):
    the pixels of all patches, as `patch_pixels` has them.
    """
    hidden = carry["hidden"]
    mask = jnp.broadcast_to(jnp.arange(hidden.shape[1]) >= config.extra_tokens, hidden.shape[:2])
    pyramid = ()
    if "visible" not in carry:
        pyramid = (hidden[:, config.extra_tokens :].reshape(hidden.shape[0], *config.grid, -1),)
    return {
        "hidden": hidden,
        "pooled": carry.get("pooled"),
        "mask": mask.astype(jnp.int32),
        "pyramid": pyramid,
        "patches": carry.get("patches"),
    }


def table(config: ViTConfig, prefix: str) -> Table:
    """transformers' names of a ViTModel or DeiTModel, as files have them.

    transformers 5 has other names in memory, and translates when it reads and writes; both are read here.
    """
    width, count = config.hidden_size, config.extra_tokens + config.grid[0] * config.grid[1]
    tokens = ("cls", "distillation") if config.distilled else ("cls",)
    rows = [
        row(f"{prefix}embeddings.{name}_token", f"backbone/embed/{name}", reshaped((1, 1, width), (width,)))
        for name in tokens
    ]
    layout = reshaped((1, count, width), (count, width))
    rows += [
        row(f"{prefix}embeddings.position_embeddings", "backbone/embed/position", layout),
        row(f"{prefix}embeddings.patch_embeddings.projection.weight", "backbone/embed/patch/kernel", CONV),
        row(f"{prefix}embeddings.patch_embeddings.projection.bias", "backbone/embed/patch/bias", AS_IS),
    ]
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"backbone/block{i}"
        for name in ("query", "key", "value"):
            rows += dense_rows(f"{theirs}.attention.attention.{name}", f"{ours}/attention/{name}", bias=config.qkv_bias)
        rows += dense_rows(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += norm_rows(f"{theirs}.layernorm_before", f"{ours}/attention/norm")
        rows += dense_rows(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        rows += dense_rows(f"{theirs}.output.dense", f"{ours}/mlp/down")
        rows += norm_rows(f"{theirs}.layernorm_after", f"{ours}/mlp/norm")
    rows += norm_rows(f"{prefix}layernorm", "backbone/norm")
    if config.add_pooling_layer:
        rows += dense_rows(f"{prefix}pooler.dense", "backbone/pooler/dense")
    return Table(
        rows=tuple(rows),
        extras=(
            r"(.*\.)?embeddings\.mask_token",
            r"(classifier|cls_classifier|distillation_classifier|decoder)\..*",
            *(() if config.add_pooling_layer else (r"(.*\.)?pooler\..*",)),
        ),
        renames=RENAMES,
    )


RENAMES = tuple(
    (rf"((?:vit\.|deit\.)?)layers\.(\d+)\.{theirs}\.(weight|bias)", rf"\1encoder.layer.\2.{on_disk}.\3")
    for theirs, on_disk in (
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"layernorm_before", "layernorm_before"),
        (r"layernorm_after", "layernorm_after"),
    )
)
"""transformers 5's names in memory → names in files."""


def _size(width: int, layers: int, heads: int, patch: int, image: int = 224) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * width, "patch_size": patch, "image_size": image}


def _resize_image(array: Any, before: ViTConfig, value: Any, rng: Any) -> Any:
    after = _with_image_size(before, value)
    return resize_grid(array, before.grid, after.grid, extra=before.extra_tokens)


def _with_image_size(before: ViTConfig, value: Any) -> ViTConfig:
    entries = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
    return configure({**entries, "image_size": value}, distilled=before.distilled)


def _image_size_entry(entries: Mapping[str, Any], value: Any) -> dict[str, Any]:
    height, width = pair(value)
    return {"image_size": height if height == width else [height, width]}


def _distilled(config: ViTConfig, entries: Mapping[str, Any]) -> DistilledClassifier:
    return DistilledClassifier(label_count(entries))


WITH_TEACHER = HeadFormat(
    architecture="DeiTForImageClassificationWithTeacher",
    head=_distilled,
    matches=lambda head: isinstance(head, DistilledClassifier),
    rows=lambda config: (
        *dense_rows("cls_classifier", "head/out"),
        *dense_rows("distillation_classifier", "head/distillation"),
    ),
    prefix="deit.",
    describe=describe_labels,
)

SHARDING = (
    (r"backbone/embed/(cls|distillation)", (None,)),
    (r"backbone/embed/position", (None, "fsdp")),
    (r"backbone/embed/patch/kernel", (None, None, None, "fsdp")),
    (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
    (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
    (r"backbone/pooler/dense/kernel", ("fsdp", None)),
    (r"backbone/.*(scale|bias)", (None,)),
)

FAMILY = Family(
    name="vit",
    configure=configure,
    backbone=ViT,
    carry=dict.fromkeys(("pixel_values", "visible", "patches", "hidden", "visual_prompts", "pooled"), "example"),
    start=start,
    finish=finish,
    inputs=lambda config: {
        "pixel_values": jax.ShapeDtypeStruct((1, *config.image_size, config.num_channels), jnp.float32)
    },
    table=table,
    prefixes=("vit.", ""),
    heads={
        "ViTForImageClassification": linear_classifier(
            "ViTForImageClassification", prefix="vit.", theirs="classifier", pools=("cls",)
        )
    },
    own_pool="cls",
    sharding=SHARDING,
    variants={
        "vit-tiny-patch16-224": _size(192, 12, 3, 16),
        "vit-small-patch16-224": _size(384, 12, 6, 16),
        "vit-small-patch32-224": _size(384, 12, 6, 32),
        "vit-base-patch16-224": _size(768, 12, 12, 16),
        "vit-base-patch16-384": _size(768, 12, 12, 16, 384),
        "vit-base-patch32-224": _size(768, 12, 12, 32),
        "vit-base-patch32-384": _size(768, 12, 12, 32, 384),
        "vit-large-patch16-224": _size(1024, 24, 16, 16),
        "vit-large-patch16-384": _size(1024, 24, 16, 16, 384),
        "vit-large-patch32-384": _size(1024, 24, 16, 32, 384),
        "vit-huge-patch14-224-in21k": _size(1280, 32, 16, 14),
        # DeiT without the distillation token is a ViT.
        "deit-tiny-patch16-224": _size(192, 12, 3, 16),
        "deit-small-patch16-224": _size(384, 12, 6, 16),
        "deit-base-patch16-224": _size(768, 12, 12, 16),
        "deit-base-patch16-384": _size(768, 12, 12, 16, 384),
    },
    resizes={
        "image_size": Resize(
            path="backbone/embed/position",
            config=_with_image_size,
            source=_image_size_entry,
            resize=_resize_image,
            undoable=False,
            how="the grid of positions interpolated",
        ),
        "num_channels": channels_resize("backbone/embed/patch/kernel"),
    },
)

DEIT = FAMILY._replace(
    name="deit",
    configure=functools.partial(configure, distilled=True),
    prefixes=("deit.", ""),
    heads={
        "DeiTForImageClassification": linear_classifier(
            "DeiTForImageClassification", prefix="deit.", theirs="classifier", pools=("cls",)
        ),
        "DeiTForImageClassificationWithTeacher": WITH_TEACHER,
    },
    variants={
        "deit-tiny-distilled-patch16-224": _size(192, 12, 3, 16),
        "deit-small-distilled-patch16-224": _size(384, 12, 6, 16),
        "deit-base-distilled-patch16-224": _size(768, 12, 12, 16),
        "deit-base-distilled-patch16-384": _size(768, 12, 12, 16, 384),
    },
)
