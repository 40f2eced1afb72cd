"""The two towers of CLIP as one chain of stages, and what its config.json may say (Radford et al. 2021)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.models.configs import read_config
from tljax.models.heads import normalize
from tljax.models.inputs import start_pixels
from tljax.models.layers import ACTIVATIONS, Conv, Dense, Embed, LayerNorm, Mlp, SelfAttention
from tljax.models.tower import Tower


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The entries of `text_config`, with transformers' names and defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The entries of `vision_config`, with transformers' names and defaults; images and patches are square."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches, (down, across)."""
        return (self.image_size // self.patch_size,) * 2


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The entries of config.json that shape a CLIP of two towers, with transformers' names and defaults."""

    text_config: TextConfig = TextConfig()
    vision_config: VisionConfig = VisionConfig()
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592

    @property
    def vocab_size(self) -> int:
        """Rows of the word embedding."""
        return self.text_config.vocab_size


Config = ClipConfig | TextConfig | VisionConfig
"""Of both towers, or of one alone, which then has no projection."""


class Towers(NamedTuple):
    """The parts of a config; None is no tower, and no projection."""

    text: TextConfig | None = None
    vision: VisionConfig | None = None
    projection: int | None = None


def towers(config: Config) -> Towers:
    """The parts of a config."""
    if isinstance(config, ClipConfig):
        return Towers(config.text_config, config.vision_config, config.projection_dim)
    return Towers(text=config) if isinstance(config, TextConfig) else Towers(vision=config)


def configure(entries: Mapping[str, Any]) -> ClipConfig:
    """config.json of a CLIP → `ClipConfig`; raises `UserError` for what is not implemented.

    `text_config_dict` and `vision_config_dict`, of files before transformers 4.25, win over the entries without
    `_dict`, as in the reference.
    """
    own = read_config(_Projection, entries, what="CLIP")
    parts = {}
    for name in ("text", "vision"):
        part = entries.get(f"{name}_config_dict") or entries.get(f"{name}_config") or {}
        if not isinstance(part, Mapping):
            raise UserError(f"{name}_config is {part!r}; it must be an object with the entries of the {name} tower.")
        parts[name] = part
    return ClipConfig(
        read_text(parts["text"]), read_vision(parts["vision"]), own.projection_dim, own.logit_scale_init_value
    )


@dataclasses.dataclass(frozen=True)
class _Projection:
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592


def read_text(entries: Mapping[str, Any]) -> TextConfig:
    """config.json of a text tower → `TextConfig`."""
    config = read_config(TextConfig, entries, what="CLIP text tower", accepted={"hidden_act": ACTIVATIONS})
    raise_faults("This config.json describes no CLIP that can be built:", _head_faults("text", config))
    return config


def read_vision(entries: Mapping[str, Any]) -> VisionConfig:
    """config.json of an image tower → `VisionConfig`."""
    sizes = {name: entries[name] for name in ("image_size", "patch_size") if isinstance(entries.get(name), list)}
    uneven = [
        f"vision: {name} is {size}; the images of CLIP are square."
        for name, size in sizes.items()
        if len(set(size)) != 1
    ]
    raise_faults("This config.json describes no CLIP that can be built:", uneven)
    entries = {**entries, **{name: size[0] for name, size in sizes.items()}}
    config = read_config(VisionConfig, entries, what="CLIP vision tower", accepted={"hidden_act": ACTIVATIONS})
    faults = _head_faults("vision", config)
    if not faults and 0 in config.grid:
        faults.append(f"vision: a patch of {config.patch_size} is larger than the image of {config.image_size}.")
    raise_faults("This config.json describes no CLIP that can be built:", faults)
    return config


def _head_faults(name: str, config: TextConfig | VisionConfig) -> list[str]:
    width, heads = config.hidden_size, config.num_attention_heads
    return [f"{name}: hidden_size {width} is no multiple of {heads} heads."] if width % heads else []


def _inner(config: TextConfig | VisionConfig) -> nn.initializers.Initializer:
    """How the kernels of blocks start: D ** -0.5, less with depth, so that the sum of all blocks stays of one size."""
    return nn.initializers.normal(config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5)


def _layer(config: TextConfig | VisionConfig, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    """One transformer layer, norms before attention and MLP."""
    shared = dict(epsilon=config.layer_norm_eps, pre_norm=True, rate=0.0, init=_inner(config))
    attend = SelfAttention(
        heads=config.num_attention_heads,
        qkv_bias=True,
        attention_rate=config.attention_dropout,
        name="attention",
        **shared,
    )
    return Mlp(config.intermediate_size, config.hidden_act, name="mlp", **shared)(attend(x, mask, train), train)


class TextEmbeddings(nn.Module):
    """Words + positions."""

    config: TextConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "input_ids" not in carry:
            return carry
        c, ids = self.config, carry["input_ids"]
        start = nn.initializers.normal(0.02)
        x = Embed(c.vocab_size, c.hidden_size, start, name="words")(ids)
        positions = Embed(c.max_position_embeddings, c.hidden_size, start, name="positions")
        return {**carry, "hidden": x + positions(jnp.arange(ids.shape[1]))}


class TextBlock(nn.Module):
    """A layer in which a token sees those before it and itself."""

    config: TextConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "input_ids" not in carry:
            return carry
        mask = carry["text_mask"][:, None, None, :] > 0
        mask = mask & jnp.tril(jnp.ones((mask.shape[-1], mask.shape[-1]), bool))
        return {**carry, "hidden": _layer(self.config, carry["hidden"], mask, train)}


class TextNorm(nn.Module):
    """The norm after the last block; the text's vector is that of its end token."""

    config: TextConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "input_ids" not in carry:
            return carry
        norm = LayerNorm(self.config.layer_norm_eps)
        nn.share_scope(self, norm)
        x = norm(carry["hidden"])
        ids = carry["input_ids"]
        # Checkpoints converted before 2023 say 2, and mean the largest id of all, which is the end token's.
        at_end = ids if self.config.eos_token_id == 2 else (ids == self.config.eos_token_id).astype(jnp.int32)
        pooled = jnp.take_along_axis(x, jnp.argmax(at_end, axis=1)[:, None, None], axis=1)[:, 0]
        rest = {key: value for key, value in carry.items() if key != "input_ids"}
        return {**rest, "hidden": x, "text_hidden": x, "text_pooled": pooled}


class VisionEmbeddings(nn.Module):
    """Patches as tokens after the class token, plus positions, normalised."""

    config: VisionConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "pixel_values" not in carry:
            return carry
        c = self.config
        start = nn.initializers.normal(0.02)
        patch = Conv(c.hidden_size, (c.patch_size,) * 2, c.patch_size, kernel_init=start, name="patch")
        x = patch(carry["pixel_values"])
        x = x.reshape(x.shape[0], -1, c.hidden_size)
        cls = self.param("cls", nn.initializers.normal(c.hidden_size**-0.5), (c.hidden_size,))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, c.hidden_size))
        x = jnp.concatenate([cls, x], axis=1)
        x = x + self.param("position", start, x.shape[1:])
        rest = {key: value for key, value in carry.items() if key != "pixel_values"}
        mask = jnp.broadcast_to(jnp.arange(x.shape[1]) >= 1, x.shape[:2]).astype(jnp.int32)
        return {**rest, "vision_mask": mask, "hidden": LayerNorm(c.layer_norm_eps, name="norm")(x)}


class VisionBlock(nn.Module):
    """A layer in which a patch sees all patches."""

    config: VisionConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "vision_mask" not in carry:
            return carry
        return {**carry, "hidden": _layer(self.config, carry["hidden"], None, train)}


class VisionNorm(nn.Module):
    """The norm of the class token, which is the image's vector; the other tokens are not normalised."""

    config: VisionConfig

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if "vision_mask" not in carry:
            return carry
        norm = LayerNorm(self.config.layer_norm_eps)
        nn.share_scope(self, norm)
        return {**carry, "vision_pooled": norm(carry["hidden"][:, 0])}


class Project(nn.Module):
    """A pooled vector into the common space, by a dense layer without bias; not normalised."""

    features: int
    reads: str
    writes: str

    @nn.compact
    def __call__(self, carry: dict[str, Any], train: bool) -> dict[str, Any]:
        if self.reads not in carry:
            return carry
        x = carry[self.reads]
        dense = Dense(self.features, False, nn.initializers.normal(x.shape[-1] ** -0.5))
        nn.share_scope(self, dense)
        return {**carry, self.writes: dense(x)}


class Clip(Tower):
    """`text/embed, text/block0 …, text/norm, text/projection`, and the same of `vision`; of one tower alone without
    projection. A wing without inputs hands the carry on as it is."""

    config: Config

    def chain(self) -> dict[str, Any]:
        c, chain = towers(self.config), {}
        kinds = (
            ("text", c.text, TextEmbeddings, TextBlock, TextNorm, "text_embeds"),
            ("vision", c.vision, VisionEmbeddings, VisionBlock, VisionNorm, "image_embeds"),
        )
        for wing, config, embed, block, norm, writes in kinds:
            if config is None:
                continue
            chain[f"{wing}/embed"] = functools.partial(embed, config)
            chain |= {f"{wing}/block{i}": functools.partial(block, config) for i in range(config.num_hidden_layers)}
            chain[f"{wing}/norm"] = functools.partial(norm, config)
            if c.projection is not None:
                chain[f"{wing}/projection"] = functools.partial(Project, c.projection, f"{wing}_pooled", writes)
        return chain

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if not stage.endswith(("norm", "projection")))


def start(config: Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry: texts as `input_ids` (Bt, T) and `attention_mask`, and images as `pixel_values` (B, H, W, C).

    One of the two may be absent.

    Raises:
      UserError: neither is there, they do not fit the model, or the model has no tower for them.
    """
    text, vision, _ = towers(config)
    reads = [name for name, tower in (("input_ids", text), ("pixel_values", vision)) if tower is not None]
    if not any(name in inputs for name in reads):
        raise UserError(
            f"The model reads {' or '.join(f'`{name}`' for name in reads)}, and the inputs are: "
            f"{', '.join(inputs) or 'none'}."
        )
    carry = {}
    if text is not None and "input_ids" in inputs:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        positions = text.max_position_embeddings
        wrong = []
        if mask is not None and mask.shape != ids.shape:
            wrong.append(f"attention_mask has the shape {mask.shape}, and input_ids {ids.shape}.")
        if ids.shape[1] > positions:
            wrong.append(
                f"An input has {ids.shape[1]} tokens, and the model has {positions} positions. Lower the processor's "
                "max_length."
            )
        raise_faults("These inputs do not fit the model:", wrong)
        carry |= {"input_ids": ids, "text_mask": jnp.ones_like(ids) if mask is None else mask}
    if vision is not None and "pixel_values" in inputs:
        carry |= start_pixels(vision, inputs)
    return carry


def finish(config: Config, carry: Mapping[str, Any]) -> dict[str, Any]:
    """What the wings gave, and `hidden`, `pooled` and `mask` of the images where there are any, else of the texts.

    `text_hidden` (Bt, T, D) and `text_mask` (Bt, T), `vision_hidden` (B, 1 + patches, D); `text_pooled`,
    `vision_pooled`; `text_embeds` and `image_embeds` of length 1. `mask` of images is 1 for patches, 0 for the class
    token.
    """
    names = ("text_hidden", "text_pooled", "text_mask", "vision_pooled")
    outputs = {name: carry[name] for name in names if name in carry}
    outputs |= {name: normalize(carry[name]) for name in ("text_embeds", "image_embeds") if name in carry}
    if "vision_mask" in carry:
        hidden, mask = carry["hidden"], carry["vision_mask"]
        images = {"hidden": hidden, "vision_hidden": hidden, "pooled": carry.get("vision_pooled"), "mask": mask}
        return {**outputs, **images}
    return {**outputs, "hidden": carry["hidden"], "pooled": carry.get("text_pooled"), "mask": carry["text_mask"]}
